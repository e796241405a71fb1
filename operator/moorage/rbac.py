"""Every right that Moorage asks of a cluster, each row with its reason: the one table that the chart's roles come from.

`python -m charts.generate` renders it into the chart; a test watches the operator's requests on a real API server and
holds the table to them, in both directions: nothing refused, nothing granted and not used.
"""

from dataclasses import dataclass

from moorage.names import GROUP

READ = ("get", "list", "watch")
MIRROR = ("list", "watch")
CHANGE = ("create", "update", "patch", "delete", "deletecollection")


@dataclass(frozen=True)
class Right:
    """One rule of a role: `verbs` on `resources` of one API group (core is the empty string), and `why`."""

    group: str
    resources: tuple[str, ...]
    verbs: tuple[str, ...]
    why: str


OPERATOR: tuple[Right, ...] = (
    Right(GROUP, ("models", "modelaliases"), MIRROR, "watches what people want; their specs are never written"),
    Right(
        GROUP,
        ("modeldownloads",),
        (*MIRROR, "create", "patch", "delete"),
        "makes one download for all Models of the same content, and removes it after the last",
    ),
    Right(
        GROUP,
        ("models/status", "modelaliases/status", "modeldownloads/status"),
        ("patch",),
        "says what happened: phase, conditions, numbers",
    ),
    Right("apps", ("deployments",), (*MIRROR, "create", "patch"), "the servers of Models; deleted with their owner"),
    Right("", ("services",), (*MIRROR, "create", "patch"), "the address of each Model; deleted with its owner"),
    Right(
        "policy",
        ("poddisruptionbudgets",),
        (*MIRROR, "create", "patch", "delete"),
        "how many servers of a Model a drain may take at once; none beside a person's own",
    ),
    Right(
        "",
        ("persistentvolumeclaims",),
        (*MIRROR, "create", "patch", "delete"),
        "the volumes of downloads; a cancelled one is emptied by deleting its claim",
    ),
    Right(
        "batch",
        ("jobs",),
        (*MIRROR, "create", "patch", "delete"),
        "downloads and benchmarks; finished, paused and outdated ones are removed",
    ),
    Right("", ("pods",), MIRROR, "why a server or a download does not run, which node it is on, what its result is"),
    Right(
        "",
        ("pods/status",),
        ("patch",),
        "marks servers whose node is about to go, which their ReplicaSet then drops; cannot change a pod's spec",
    ),
    Right("", ("nodes",), MIRROR, "which GPUs there are"),
    Right(
        "", ("resourcequotas", "limitranges"), MIRROR, "whether a namespace admits a server, said before the download"
    ),
    Right(
        "resource.k8s.io",
        ("resourceslices", "resourceclaims"),
        MIRROR,
        "which GPUs dynamic resource allocation gives out, and who has them",
    ),
    Right(
        "resource.k8s.io",
        ("resourceclaimtemplates",),
        (*MIRROR, "create", "patch", "delete"),
        "what a server on such GPUs asks for; deleted when no server uses it any more",
    ),
    Right("", ("persistentvolumes",), MIRROR, "which nodes can mount the volume that a model's files lie in"),
    Right(
        "",
        ("namespaces",),
        MIRROR,
        "their labels, by which Models permit aliases of other namespaces, and how many Models may be loaded in them",
    ),
    Right("storage.k8s.io", ("storageclasses",), MIRROR, "whether a claim can be bound at all"),
    Right("", ("events",), ("create", "patch"), "tells people what happened, and counts what happens again"),
    Right("", ("secrets",), ("get",), "tokens that a source names, one by one: never listed"),
    Right("", ("configmaps",), ("get",), "CA bundles that a source names, one by one: never listed"),
)
"""Rights of the operator's ServiceAccount, in all namespaces."""

GATEWAY: tuple[Right, ...] = (
    Right(GROUP, ("models", "modelaliases"), MIRROR, "which names there are and where requests for them go"),
    Right("discovery.k8s.io", ("endpointslices",), MIRROR, "the addresses of ready servers"),
    Right("", ("namespaces",), MIRROR, "their labels, by which Models permit aliases of other namespaces"),
)
"""Rights of the gateway's ServiceAccount, in all namespaces. It writes nothing."""

GATEWAY_OWN: tuple[Right, ...] = (
    Right("", ("secrets",), MIRROR, "API keys (their hashes), by label; a Role cannot name the label"),
)
"""Rights of the gateway's ServiceAccount in its own namespace, where clients need API keys."""

KINDS = ("models", "modelaliases", "modeldownloads")

VIEWER: tuple[Right, ...] = (
    Right(GROUP, KINDS, READ, "see Models, ModelAliases and ModelDownloads"),
    Right(
        GROUP,
        (*(f"{kind}/status" for kind in KINDS), "models/scale"),
        ("get",),
        "see their status and scale alone, as some tools ask for them",
    ),
)
"""Rights of a person who uses models; part of Kubernetes' own `view`."""

EDITOR: tuple[Right, ...] = (
    Right(GROUP, KINDS, CHANGE, "make, change and remove Models, ModelAliases and ModelDownloads"),
    Right(GROUP, ("models/scale",), ("update", "patch"), "load and unload: `kubectl scale model NAME --replicas=0`"),
)
"""Rights of a person who runs models, beside VIEWER; part of Kubernetes' own `edit`. Statuses are the operator's."""
