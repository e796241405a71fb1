"""Whether a pod may run on a node: selectors, node affinity and taints, as kube-scheduler evaluates them."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from moorage.placement import vendors
from moorage.placement.inventory import Taint

Plain = Mapping[str, Any]
REQUIRED = "requiredDuringSchedulingIgnoredDuringExecution"
PREFERRED = "preferredDuringSchedulingIgnoredDuringExecution"


def selects(selector: Mapping[str, str], labels: Mapping[str, str]) -> bool:
    """Whether a nodeSelector matches."""
    return all(labels.get(key) == value for key, value in selector.items())


def labels_match(selector: Plain | None, labels: Mapping[str, str]) -> bool:
    """Whether a meta/v1 LabelSelector matches; an empty one matches everything, none at all nothing."""
    if selector is None:
        return False
    return selects(selector.get("matchLabels") or {}, labels) and all(
        _matches(expression, labels) for expression in selector.get("matchExpressions") or ()
    )


def affinity_matches(node_affinity: Plain | None, name: str, labels: Mapping[str, str]) -> bool:
    """Whether the required part of a core/v1 NodeAffinity matches: any of its terms; none required matches all."""
    required = (node_affinity or {}).get(REQUIRED)
    if required is None:
        return True
    return any(term_matches(term, name, labels) for term in required.get("nodeSelectorTerms") or ())


def term_matches(term: Plain, name: str, labels: Mapping[str, str]) -> bool:
    """Whether all expressions of a NodeSelectorTerm match; one without any matches nothing."""
    expressions, fields = term.get("matchExpressions") or (), term.get("matchFields") or ()
    if not expressions and not fields:
        return False
    return all(_matches(e, labels) for e in expressions) and all(_matches(f, {"metadata.name": name}) for f in fields)


def may_match(term: Plain, labels: Mapping[str, str]) -> bool:
    """Whether a new node may match a NodeSelectorTerm, of which only `labels` are known beforehand.

    What is not known may turn out right (a zone), but for its name: what asks for a certain node is on no new one.
    """
    if term.get("matchFields"):
        return False
    expressions = term.get("matchExpressions") or ()
    return all(_matches(e, labels) for e in expressions if e.get("key") in labels or e.get("key") == vendors.HOSTNAME)


def _matches(expression: Plain, labels: Mapping[str, str]) -> bool:
    """One NodeSelectorRequirement; like kube-scheduler, one that it could not parse matches nothing."""
    value, wanted = labels.get(expression.get("key", "")), expression.get("values") or ()
    match expression.get("operator"):
        case "In":
            return value is not None and value in wanted
        case "NotIn":
            return value is None or value not in wanted
        case "Exists":
            return value is not None
        case "DoesNotExist":
            return value is None
        case "Gt" | "Lt" as operator:
            return _compares(operator, value, wanted)
    return False


def _compares(operator: str, value: str | None, wanted: Sequence[str]) -> bool:
    if value is None or len(wanted) != 1:
        return False
    left, right = vendors.integer(value), vendors.integer(str(wanted[0]))
    if left is None or right is None:
        return False
    return left > right if operator == "Gt" else left < right


def untolerated(taints: Iterable[Taint], tolerations: Sequence[Plain]) -> Taint | None:
    """The first taint that keeps the pod off the node; PreferNoSchedule keeps nobody off."""
    for taint in taints:
        if taint.effect in ("NoSchedule", "NoExecute") and not any(_tolerates(t, taint) for t in tolerations):
            return taint
    return None


def _tolerates(toleration: Plain, taint: Taint) -> bool:
    if toleration.get("effect") not in (None, "", taint.effect):
        return False
    key = toleration.get("key") or ""
    if toleration.get("operator") == "Exists":
        return key in ("", taint.key)
    return key == taint.key and (toleration.get("value") or "") == taint.value
