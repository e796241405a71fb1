"""Which nodes can mount a volume, as far as it matters to those who want to: pure readings of a volume's facts."""

from collections.abc import Collection

from moorage import names
from moorage.api.conditions import Reason
from moorage.placement.matching import REQUIRED
from moorage.placement.vendors import HOSTNAME
from moorage.planning.pods import Trouble
from moorage.planning.types import Manifest

SHARED = {"ReadWriteMany", "ReadOnlyMany"}


def one_node(volume: Manifest | None) -> bool:
    """Whether only one node at a time can mount it (ReadWriteOnce, ReadWriteOncePod)."""
    return volume is not None and not SHARED & set(volume["accessModes"])


def mountable(volume: Manifest | None, leaving: Collection[str] = ()) -> frozenset[str] | None:
    """Names of the nodes that a further pod with this volume can run on; None: any.

    `leaving` are pods that are gone by then.
    """
    if volume is None:
        return None
    nodes = None if volume["nodes"] is None else frozenset(volume["nodes"])
    mounted = frozenset(node for node, pods in volume["mounted"].items() if not set(pods) <= set(leaving))
    return mounted if one_node(volume) and mounted else nodes


def growable(volume: Manifest | None, leaving: Collection[str] = ()) -> frozenset[str] | None:
    """Names of the node pools on whose new nodes a pod with this volume could run; None: any; `leaving` as above."""
    if volume is None or volume.get("pools") is None:
        return None
    stays = any(not set(pods) <= set(leaving) for pods in volume["mounted"].values())
    return frozenset() if one_node(volume) and stays else frozenset(volume["pools"])


def only_nodes(nodes: frozenset[str] | tuple[str, ...]) -> Manifest:
    """The core/v1 NodeAffinity that requires one of `nodes` by name."""
    field = {"key": "metadata.name", "operator": "In"}
    # The API server takes one value per matchFields expression, so each node has a term of its own.
    terms = [{"matchFields": [{**field, "values": [name]}]} for name in sorted(nodes)]
    return {REQUIRED: {"nodeSelectorTerms": terms}}


def beside(affinity: Manifest | None, volume: Manifest | None) -> Manifest | None:
    """The core/v1 Affinity that also keeps all pods with `volume` on one node, where its nature asks for that.

    The second pod would wait for the volume for ever: a further replica, another Model's server, the new pod of a
    rollout. The pods carry `labels(volume)`; kube-scheduler lets the first of them run anywhere.
    """
    if not labels(volume):
        return affinity
    ours = {"labelSelector": {"matchLabels": labels(volume)}, "topologyKey": HOSTNAME}
    pods = dict((affinity or {}).get("podAffinity") or {})
    return {**(affinity or {}), "podAffinity": {**pods, REQUIRED: [*(pods.get(REQUIRED) or ()), ours]}}


def labels(volume: Manifest | None) -> dict[str, str]:
    """The label by which pods of one volume find each other; none where the volume's own node affinity does that."""
    if volume is None or not one_node(volume) or len(volume["nodes"] or ()) == 1:
        return {}
    return {names.CLAIM_LABEL: names.dns_label(volume["claim"])}


def explained(trouble: Trouble | None, volume: Manifest | None) -> Trouble | None:
    """`trouble` of pods that no node takes, with the volume's part in it where it has one."""
    if trouble is None or trouble.reason != Reason.UNSCHEDULABLE or volume is None:
        return trouble
    nodes = mountable(volume)
    if nodes is None or not one_node(volume):
        return trouble
    where = f"node {min(nodes)} alone" if len(nodes) == 1 else f"the {len(nodes)} nodes of its zone"
    return Trouble(
        Reason.VOLUME_ON_ONE_NODE,
        f"claim {volume['claim']} is ReadWriteOnce and can be mounted on {where}, which has no place for this pod; "
        f"for more nodes use storage.accessModes [ReadWriteMany]. {trouble.message}",
    )


def in_use(pod: Manifest, volume: Manifest | None) -> Trouble | None:
    """The trouble of a pod that waits on its node for a volume which a pod of another node holds."""
    if volume is None or not one_node(volume) or not pod["node"] or pod["phase"] != "Pending":
        return None
    if any(c.get("startedAt") or c.get("terminated") for c in pod.get("containers", ())):
        return None
    holder = next(((node, pods[0]) for node, pods in volume["mounted"].items() if node != pod["node"]), None)
    if holder is None:
        return None
    node, name = holder
    text = f"claim {volume['claim']} is ReadWriteOnce and mounted by pod {name} on node {node}"
    return Trouble(Reason.VOLUME_IN_USE, f"{text}; pod {pod['name']} waits on node {pod['node']} until that one ends")
