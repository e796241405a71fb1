"""What the operator knows of the three kinds: the newest object of each, and who depends on whom.

Objects are kept as JSON bytes: a parsed Model costs ten times its text, and only the few that are being planned need to
be parsed. Children live in the reflectors; the store holds the links between the kinds.
"""

from collections import OrderedDict, defaultdict
from collections.abc import Callable, Container, Iterable, Iterator
from typing import Any, NamedTuple

import orjson

from moorage import names
from moorage.planning.served_names import namespace_in

Manifest = dict[str, Any]

GONE_REMEMBERED = 4096
SETTLED = ("Ready", "ScaledToZero")
PREEMPTED = "Preempted"
PERCENT_STEP = 5
"""How far a download gets before the Models that wait for it hear of it."""

MODEL, DOWNLOAD, ALIAS = "Model", "ModelDownload", "ModelAlias"
CLAIM = "PersistentVolumeClaim"
"""Claims are not kept here, but a download may name one, and wants to hear of it."""
NAME = "name"
"""Neither are names that clients use: whoever claims one wants to hear of the others that do."""
NAMESPACE = "Namespace"
"""Nor namespaces: whoever claims a name that would be one of theirs wants to hear whether there is such a one."""


class Key(NamedTuple):
    """One object of one of the three kinds."""

    kind: str
    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.kind} {self.namespace}/{self.name}"


class Change(NamedTuple):
    """What a watch event changed: `wanted` the spec, labels, annotations or deletion, `status` the status."""

    wanted: bool
    status: bool


class _Entry(NamedTuple):
    version: int
    wanted: int
    status: int
    phase: str
    loaded: bool
    body: bytes


class Store:
    """Newest known object per key, with reverse links: claim to downloads, download to Models, Model to aliases, names.

    `changed(key, change)` hears of every change, whoever brought it (a watch or our own write); `linked(key)` of every
    key that something began or ceased to name.
    """

    def __init__(
        self,
        changed: Callable[[Key, Change], None] = lambda _key, _change: None,
        linked: Callable[[Key], None] = lambda _key: None,
    ) -> None:
        self._changed, self._linked = changed, linked
        self._entries: dict[Key, _Entry] = {}
        self._labels: dict[tuple[str, str, str], Key] = {}
        self._links: dict[Key, frozenset[Key]] = {}
        self._back: dict[Key, set[Key]] = defaultdict(set)
        self._gone: OrderedDict[Key, int] = OrderedDict()

    def put(self, key: Key, obj: Manifest) -> None:
        """Take `obj` as the newest state of `key`, unless that or a newer one is known already.

        Resource versions of one kind grow (Kubernetes API conventions, since 1.35 a promise to clients).
        """
        version = int(obj["metadata"].get("resourceVersion") or 0)
        old = self._entries.get(key)
        if version <= (old.version if old else self._gone.get(key, -1)):
            return
        self._gone.pop(key, None)
        metadata = {k: v for k, v in obj["metadata"].items() if k != "managedFields"}
        body = {**obj, "metadata": metadata}
        wanted = hash(orjson.dumps([obj.get("spec"), _asked(metadata)], option=orjson.OPT_SORT_KEYS))
        status = hash(orjson.dumps(_shown(obj.get("status")), option=orjson.OPT_SORT_KEYS))
        phase = (obj.get("status") or {}).get("phase") or ""
        self._entries[key] = _Entry(version, wanted, status, phase, _loaded(obj.get("status") or {}), _packed(body))
        self._labels[(key.kind, key.namespace, names.dns_label(key.name))] = key
        self._link(key, links_of(key, body))
        change = Change(True, True) if old is None else Change(wanted != old.wanted, status != old.status)
        if any(change):
            self._changed(key, change)

    def drop(self, key: Key, version: int) -> None:
        """Forget `key`: it was deleted at `version`, and nothing older brings it back."""
        known = self._entries.get(key)
        if known is not None and known.version > version:
            return  # a namesake made since
        self._gone[key] = version
        self._gone.move_to_end(key)
        while len(self._gone) > GONE_REMEMBERED:
            self._gone.popitem(last=False)
        self._entries.pop(key, None)
        self._labels.pop((key.kind, key.namespace, names.dns_label(key.name)), None)
        self._link(key, frozenset())
        if known is not None:
            self._changed(key, Change(True, True))

    def keep_only(self, kind: str, seen: Container[Key], version: int) -> None:
        """Forget what a list of `kind`, taken at `version`, did not show: its deletion was missed."""
        for key in self.all_keys(kind):
            if key not in seen and self._entries[key].version <= version:
                self.drop(key, version)

    def __contains__(self, key: Key) -> bool:
        return key in self._entries

    def get(self, key: Key) -> Manifest | None:
        """The newest object of `key`, freshly parsed."""
        entry = self._entries.get(key)
        return None if entry is None else orjson.loads(entry.body)

    def version(self, key: Key) -> int | None:
        """The resourceVersion of what is known of `key`."""
        entry = self._entries.get(key)
        return entry.version if entry else None

    def by_label(self, kind: str, namespace: str, label: str) -> Key | None:
        """The key whose children carry `label` as their moorage.dev/model or moorage.dev/download label."""
        return self._labels.get((kind, namespace, label))

    def dependents(self, key: Key) -> Iterator[Key]:
        """Keys that name `key`: the Models of a download, the aliases of a Model."""
        yield from self._back.get(key, ())

    def claimants(self, namespace: str, name: str) -> set[Key]:
        """Keys that look at the name `name` of `namespace`: by servedNames, or as an alias that is called so."""
        return self._back.get(Key(NAME, namespace, name), set())

    def pretenders(self, namespace: str) -> set[Key]:
        """Keys with served names that would be names of `namespace`, were there one."""
        return self._back.get(Key(NAMESPACE, "", namespace), set())

    def expect(self, key: Key, named: Iterable[Key]) -> None:
        """`key` is about to name these too: true from now on, so that whoever is made for it knows for whom."""
        self._link(key, self.links(key) | frozenset(named))

    def links(self, key: Key) -> frozenset[Key]:
        """Keys that `key` names."""
        return self._links.get(key, frozenset())

    def guests(self, namespace: str) -> list[Key]:
        """Aliases of `namespace` that name Models of other namespaces."""
        own = [key for key in self._links if key.kind == ALIAS and key.namespace == namespace]
        return [k for k in own if any(m.kind == MODEL and m.namespace != namespace for m in self._links[k])]

    def unready(self) -> list[Key]:
        """Keys that may wait for something around them: nodes, GPUs, storage classes.

        Who was put to sleep for another comes last: its place is for those who want it now.
        """
        waits = [k for k, e in self._entries.items() if k.kind != ALIAS and e.phase not in SETTLED]
        return sorted(waits, key=lambda k: self._entries[k].phase == PREEMPTED)

    def loaded(self) -> list[Key]:
        """Models that have servers and are to have some."""
        return [k for k, e in self._entries.items() if e.loaded]

    def phases(self) -> Iterator[tuple[Key, str]]:
        """The phase of every object; `None` before its first pass."""
        for key, entry in self._entries.items():
            yield key, entry.phase or "None"

    def all_keys(self, kind: str | None = None) -> list[Key]:
        """All keys, or those of one kind."""
        return [k for k in self._entries if kind is None or k.kind == kind]

    def _link(self, key: Key, targets: frozenset[Key]) -> None:
        old = self._links.get(key, frozenset())
        for gone in old - targets:
            self._back[gone].discard(key)
            self._tell(gone)
            if not self._back[gone]:
                del self._back[gone]
        for new in targets - old:
            self._tell(new)
            self._back[new].add(key)
        if targets:
            self._links[key] = targets
        else:
            self._links.pop(key, None)

    def _tell(self, target: Key) -> None:
        """Something began or ceased to name `target`: of a name that concerns the others who claim it."""
        if target.kind == NAME:
            for rival in self._back[target]:
                self._linked(rival)
        elif target.kind not in (CLAIM, NAMESPACE):
            self._linked(target)


def _loaded(status: Manifest) -> bool:
    """Whether a Model has servers and is to have some: it takes one of its namespace's places."""
    return bool(status.get("replicas") and status.get("desiredReplicas"))


def _packed(body: Manifest) -> bytes:
    """`body` as JSON, copied: orjson leaves its own bytes in a buffer as large as it grew, 8 KiB for 3.4."""
    return bytes(memoryview(orjson.dumps(body)))


def _shown(status: Manifest | None) -> Manifest:
    """A status without what concerns nobody but its own object: who uses a download, and since when nobody does.

    A download that runs is written every second. The Models that wait for it follow in coarse steps, else each of them
    would be planned and written every second, too.
    """
    found = status or {}
    if found.get("phase") == "Downloading":
        kinds = [[c.get(k) for k in ("type", "status", "reason")] for c in found.get("conditions", ())]
        return {"phase": "Downloading", "step": (found.get("percent") or 0) // PERCENT_STEP, "conditions": kinds}
    return {k: v for k, v in found.items() if k not in ("usedBy", "unusedSince")}


def _asked(metadata: Manifest) -> list[Any]:
    return [metadata.get("labels"), metadata.get("annotations"), metadata.get("deletionTimestamp"), metadata["uid"]]


def links_of(key: Key, obj: Manifest) -> frozenset[Key]:
    """The keys that an object names: a Model its download, an alias its targets and fallbacks, a download its claim."""
    spec: Manifest = obj.get("spec") or {}
    if key.kind == DOWNLOAD:
        return _keys(CLAIM, key.namespace, [claim_name(spec)])
    if key.kind == MODEL:
        found: list[str | None] = [
            ((obj.get("status") or {}).get("source") or {}).get("downloadName"),
            ((spec.get("source") or {}).get("downloadRef") or {}).get("name"),
        ]
        return _keys(DOWNLOAD, key.namespace, found) | _claims(key, spec)
    if key.kind == ALIAS:
        refs = [t.get("modelRef") or {} for t in (*(spec.get("targets") or ()), *(spec.get("fallbacks") or ()))]
        models = (Key(MODEL, r.get("namespace") or key.namespace, r["name"]) for r in refs if r.get("name"))
        return frozenset(models) | {Key(NAME, key.namespace, key.name)} | _claims(key, spec)
    return frozenset()


def _claims(key: Key, spec: Manifest) -> frozenset[Key]:
    """The names that an object claims, and the namespaces that they would be of."""
    served = [name for name in spec.get("servedNames") or () if isinstance(name, str)]
    return _keys(NAME, key.namespace, served) | _keys(NAMESPACE, "", map(namespace_in, served))


def claim_name(spec: Manifest) -> str | None:
    """The claim that a ModelDownload's spec names; None where Moorage makes one."""
    prefilled = (spec.get("source") or {}).get("persistentVolumeClaim") or {}
    found: str | None = prefilled.get("claimName") or (spec.get("storage") or {}).get("claimName")
    return found


def _keys(kind: str, namespace: str, found: Iterable[str | None]) -> frozenset[Key]:
    return frozenset(Key(kind, namespace, name) for name in found if name)
