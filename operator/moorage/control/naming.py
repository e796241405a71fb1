"""What the store knows about names: who has those that an object claims, and whose aliases point at a Model."""

from collections.abc import Callable

from moorage.control.store import ALIAS, MODEL, NAME, Key, Store
from moorage.planning.served_names import Claim, ObjectKey, lost_to, lost_to_namespace, owners
from moorage.planning.types import Manifest


def taken(store: Store, key: Key, obj: Manifest, is_namespace: Callable[[str], bool]) -> dict[str, str]:
    """The served names of `key` that it has not got, and why, as a clause."""
    served = (obj.get("spec") or {}).get("servedNames") or ()
    if not served:
        return {}

    def holder(where: ObjectKey) -> Claim | None:
        kinds = (kind for kind in (ALIAS, MODEL) if Key(kind, *where) in store)
        return next((Claim("", kind, *where) for kind in kinds), None)

    claims = [(name, claim) for name in served for claim in _claims(store, key.namespace, name)]
    found = owners(claims, holder, is_namespace)
    result = {}
    for name in served:
        owner = found.get((key.namespace, name))
        if owner is None:
            result[name] = lost_to_namespace(name, key.namespace)
        elif (owner.kind, owner.name) != (key.kind, key.name):
            result[name] = lost_to(owner)
    return result


def _claims(store: Store, namespace: str, name: str) -> list[Claim]:
    """Everyone of `namespace` with `name` among the served names."""
    found = []
    for key in store.dependents(Key(NAME, namespace, name)):
        obj = store.get(key)
        if obj and name in (obj["spec"].get("servedNames") or ()):
            found.append(Claim(obj["metadata"].get("creationTimestamp") or "", key.kind, namespace, key.name))
    return found


def aliases_of(store: Store, model: Key) -> list[Key]:
    """The aliases that name `model` as a target or fallback, permitted or not."""
    return sorted(key for key in store.dependents(model) if key.kind == ALIAS)
