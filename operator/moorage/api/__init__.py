"""The three kinds as types: Model, ModelAlias and ModelDownload, their conditions, and the CRDs made from them.

The types are the single source: `crd.py` turns them into the custom resource definitions, the operator reads objects
through them, and the reference in the docs is printed from their descriptions. Nothing here does I/O.
"""
