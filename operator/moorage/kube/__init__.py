"""The Kubernetes API: the only room that imports `kubernetes`. Plain dicts in and out, errors of `moorage.errors`.

`resources` names what there is, `client` asks once, `reflector` keeps watching, `events` tells people.
"""
