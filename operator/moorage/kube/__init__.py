"""The Kubernetes API: the only room that imports `kubernetes`. Plain dicts in and out, errors of `moorage.errors`.

`resources` names what there is, `client` asks once, `reflector` keeps watching, `events` tells people.
"""

import sys
from importlib.util import find_spec, module_from_spec


def _only_what_is_asked_for() -> None:
    """Have `kubernetes.aio` imported without all the rest.

    `kubernetes/__init__` (37.0) imports the synchronous client with its config, streams and informers: 10 MiB and a
    third of a second that nothing here uses. The package without its body still finds its submodules, for kopf as well.
    """
    spec = find_spec("kubernetes")
    if "kubernetes" not in sys.modules and spec is not None:
        sys.modules["kubernetes"] = module_from_spec(spec)


_only_what_is_asked_for()
