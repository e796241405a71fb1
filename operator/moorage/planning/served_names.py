"""Who has a name that several objects claim: the one rule for the operator, which tells, and the gateway, which routes.

Within a namespace an object's own name comes first (an alias' before a Model's), then the older of those that claim a
name in `spec.servedNames`; of two made in the same second the one first in the alphabet. A claim that reads like the
`namespace/name` of another object is lost too, because that always works.
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
    claims: Iterable[tuple[str, Claim]], holder: Callable[[ObjectKey], Claim | None]
) -> dict[tuple[str, str], Claim]:
    """Who has each claimed name, by namespace and name; `holder` finds the object whose own name that is.

    A name that reads like `namespace/name` of another object has no owner here.
    """
    rivals: defaultdict[tuple[str, str], list[Claim]] = defaultdict(list)
    for name, claim in claims:
        rivals[claim.namespace, name].append(claim)
    return {
        (namespace, name): holder((namespace, name)) or min(some)
        for (namespace, name), some in rivals.items()
        if full_name_holder(name, holder) is None
    }


def full_name_holder(name: str, holder: Callable[[ObjectKey], Claim | None]) -> Claim | None:
    """The object that the served name `name` would be mistaken for, because it reads like its `namespace/name`."""
    namespace, slash, rest = name.partition("/")
    return holder((namespace, rest)) if slash else None


def tell(draft: Draft, taken: Mapping[str, str]) -> None:
    """The condition NameConflict, there only while another object has one of the served names; `taken` says which."""
    if not taken:
        draft.drop(Reason.NAME_CONFLICT)
        return
    lost = "; ".join(f"{name} is that of {owner}" for name, owner in taken.items())
    text = f"{lost}; requests for it go there: remove it from spec.servedNames, or rename the other"
    draft.set(Reason.NAME_CONFLICT, TRUE, Reason.NAME_CONFLICT, text)
