"""Who has a name that several objects claim: the one rule for the operator, which tells, and the gateway, which routes.

Within a namespace an object's own name comes first (an alias' before a Model's), then the older of those that claim a
name in `spec.servedNames`; of two made in the same second the one first in the alphabet. A claim that begins with the
name of a namespace and a slash is lost whether or not there is such an object: who asks for `team-b/x` means what
team-b calls x, and must not get to somebody else while team-b has none.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from moorage.api.conditions import Reason
from moorage.planning.draft import TRUE, Draft

ObjectKey = tuple[str, str]  # namespace, name


@dataclass(frozen=True, order=True)
class Claim:
    """An object that claims names: the field order is the order of precedence. `made` is its creationTimestamp."""

    made: str
    kind: str
    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.kind} {self.name}"


def owners(
    claims: Iterable[tuple[str, Claim]],
    holder: Callable[[ObjectKey], Claim | None],
    is_namespace: Callable[[str], bool],
) -> dict[tuple[str, str], Claim]:
    """Who has each claimed name, by namespace and name; `holder` finds the object whose own name that is.

    A name that begins with a namespace that there is has no owner here.
    """
    rivals: defaultdict[tuple[str, str], list[Claim]] = defaultdict(list)
    for name, claim in claims:
        rivals[claim.namespace, name].append(claim)
    return {
        (namespace, name): holder((namespace, name)) or min(some)
        for (namespace, name), some in rivals.items()
        if not is_namespace(namespace_in(name))
    }


def namespace_in(name: str) -> str:
    """The namespace that a served name would be of, if there is one called so; empty where it reads like none."""
    namespace, slash, _ = name.partition("/")
    return namespace if slash else ""


def lost_to(owner: Claim) -> str:
    """What is said of a name that another object of the namespace has."""
    return f"is that of {owner}, and requests for it go there: remove it from spec.servedNames, or rename the other"


def lost_to_namespace(name: str, own: str) -> str:
    """What is said of a name that reads like one of a namespace; `own` is that of the object which claims it."""
    namespace, _, rest = name.partition("/")
    if namespace == own:
        return f"means {rest} of this namespace: claim {rest} alone in spec.servedNames, and {name} leads here too"
    return f"is for namespace {namespace} to give, as all names that begin so: remove it from spec.servedNames"


def tell(draft: Draft, taken: Mapping[str, str]) -> None:
    """The condition NameConflict, there only while a claim is lost; `taken` says why, by served name."""
    if not taken:
        draft.drop(Reason.NAME_CONFLICT)
        return
    text = "; ".join(f"{name} {why}" for name, why in taken.items())
    draft.set(Reason.NAME_CONFLICT, TRUE, Reason.NAME_CONFLICT, text)
