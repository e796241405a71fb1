"""Takes the snapshot that a plan is made from."""

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from moorage import names
from moorage.control import naming
from moorage.control.beside import Beside
from moorage.control.children import Children
from moorage.control.neighbours import owner_of
from moorage.control.store import DOWNLOAD, MODEL, Key, Store, claim_name
from moorage.control.window import window_of
from moorage.kube.resources import (
    CLAIMS,
    DEPLOYMENTS,
    DISRUPTION_BUDGETS,
    JOBS,
    PODS,
    RESOURCE_CLAIM_TEMPLATES,
    SERVICES,
)
from moorage.placement.inventory import Inventory
from moorage.planning.types import (
    Defaults,
    Manifest,
    ObservedAlias,
    ObservedDownload,
    ObservedModel,
    Pointing,
    Server,
    Window,
)


def now() -> datetime:
    """The present, in whole seconds, as Kubernetes writes times."""
    return datetime.now(UTC).replace(microsecond=0)


class Observer:
    """Puts together what is known of one key; reads memory only, so a snapshot is consistent."""

    def __init__(
        self,
        store: Store,
        children: Children,
        defaults: Defaults,
        beside: Beside,
    ) -> None:
        self._store, self._children, self._defaults = store, children, defaults
        self._resolving, self._warming, self._progress = beside.resolving, beside.warming, beside.progress
        self._credentials, self._gate, self._ledger = beside.credentials, beside.gate, beside.ledger
        self._usage, self._neighbours, self._agents = beside.usage, beside.neighbours, beside.agents

    def model(self, key: Key, obj: Manifest) -> ObservedModel:
        """Snapshot of a Model."""
        children, where = self._children, (key.namespace, names.model_child(key.name))
        download = self._download_of(key, obj)
        quotas, limit_ranges = children.bounds(key.namespace)
        claim = ((obj.get("status") or {}).get("source") or {}).get("claimName")
        files = self._store.get(download) if download else None
        claim = claim or ((files or {}).get("status") or {}).get("claimName")
        return ObservedModel(
            model=obj,
            now=now(),
            defaults=self._defaults,
            download=files,
            deployment=children.get(DEPLOYMENTS, where),
            service=children.get(SERVICES, where),
            pods=tuple(children.of(PODS, key)),
            jobs=tuple(children.of(JOBS, key)),
            inventory=children.inventory(),
            reservations=self._ledger.all(),
            resolved=self._resolving.answer(key),
            warmed=self._warming.answer(key),
            gpu_reports=self._agents.reports(),
            waited_seconds=self._agents.waited(key),
            volume=children.volume((key.namespace, claim)) if claim else None,
            usage=self._usage.of(key),
            claim_templates=tuple(children.of(RESOURCE_CLAIM_TEMPLATES, key)),
            budget=children.get(DISRUPTION_BUDGETS, where),
            budgets=children.budgets(key.namespace),
            quotas=quotas,
            limit_ranges=limit_ranges,
            taken=naming.taken(self._store, key, obj, self._children.has_namespace),
            aliases=tuple(
                Pointing(alias.namespace, alias.name, children.namespace_labels(alias.namespace))
                for alias in naming.aliases_of(self._store, key)
            ),
            evicted_for=owner_of(whom) if (whom := self._ledger.ordered_for(key)) else "",
            **self._places(key),
        )

    def _places(self, key: Key) -> dict[str, Any]:
        """The namespace's limit of loaded Models; who is loaded matters only where there is one."""
        limit = self._children.loaded_limit(key.namespace, self._defaults.max_loaded_models)
        loaded = self._ledger.loaded(key.namespace) if limit is not None else ()
        others = tuple(sorted(name for name in loaded if name != key.name))
        return {"loaded_limit": limit, "loaded": self._ledger.is_loaded(key), "loaded_others": others}

    def around(self, key: Key, seen: ObservedModel) -> ObservedModel:
        """The same snapshot with the Model's neighbours in sight, for one that has no room."""
        inventory = seen.inventory or Inventory(())
        return replace(seen, around=self._neighbours.around(key, inventory, seen.loaded_others))

    def _download_of(self, key: Key, obj: Manifest) -> Key | None:
        ref = ((obj.get("spec") or {}).get("source") or {}).get("downloadRef") or {}
        found = ref.get("name") or ((obj.get("status") or {}).get("source") or {}).get("downloadName")
        return Key(DOWNLOAD, key.namespace, found) if found else None

    def download(self, key: Key, obj: Manifest) -> ObservedDownload:
        """Snapshot of a ModelDownload."""
        children, child = self._children, names.download_child(key.name)
        spec: Manifest = obj.get("spec") or {}
        storage = spec.get("storage") or {}
        claim = claim_name(spec) or child
        found = children.get(CLAIMS, (key.namespace, claim))
        wanted = (found or {}).get("storageClass") or storage.get("storageClassName")
        window = window_of(spec.get("window"), now())
        users = {k.name for k in self._store.dependents(key) if k.kind == MODEL}
        users.update(children.serving((key.namespace, child)))  # an old version may serve while a new one is on its way
        return ObservedDownload(
            download=obj,
            now=now(),
            defaults=self._defaults,
            claim=found,
            job=children.get(JOBS, (key.namespace, child)),
            pods=tuple(children.of(PODS, key)),
            users=tuple(users),
            progress=self._progress.latest(key),
            resolved=self._resolving.answer(key),
            storage_class=children.storage_class(wanted),
            storage_class_missing=children.storage_class_trouble(wanted),
            ahead=self._ahead(key, obj, window),
            window=window,
            volume=children.volume((key.namespace, claim)),
            credentials_changed=self._credentials.has_changed(key),
            server=None if (obj.get("status") or {}).get("phase") == "Ready" else self._server(key),
        )

    def _server(self, key: Key) -> Server | None:
        """What the first Model that uses the download wants of nodes: one with GPUs promised to it, else by name."""
        users = sorted(k for k in self._store.dependents(key) if k.kind == MODEL)
        promised = {user: self._ledger.nodes(user) for user in users}
        user = min(users, key=lambda u: (not promised[u], u), default=None)
        if user is None or (model := self._store.get(user)) is None:
            return None
        spec: Manifest = model.get("spec") or {}
        awaited = {node.partition("/")[0] for node in promised[user] if "/" in node}  # nodes still to come
        return Server(
            node_selector=spec.get("nodeSelector") or {},
            tolerations=tuple(spec.get("tolerations") or ()),
            node_affinity=(spec.get("affinity") or {}).get("nodeAffinity"),
            nodes=tuple(n for n in promised[user] if "/" not in n),
            pools=tuple(dict(s.labels) for s in self._children.inventory().node_pools if s.name in awaited),
        )

    def _ahead(self, key: Key, obj: Manifest, window: Window | None) -> int:
        """Place in the queue of one that wants to run; whoever is done or may not run wants no place."""
        status, state = obj.get("status") or {}, (obj.get("spec") or {}).get("state", "Active")
        later = status.get("nextAttemptAt") or ""
        resting = (window and not window.open) or not self._may_start(key, obj, status)
        if resting or state != "Active" or later > now().strftime("%Y-%m-%dT%H:%M:%SZ"):
            self._gate.leave(key)
            return 0
        return self._gate.ahead(key, obj["spec"].get("priority", 0), obj["metadata"].get("creationTimestamp", ""))

    def _may_start(self, key: Key, obj: Manifest, status: Manifest) -> bool:
        """Whether the pass may come to starting a Job: the very one that takes the source's answer does."""
        match status.get("phase"):
            case "Ready":
                return False
            case "Failed":
                return bool(status.get("observedGeneration") != obj["metadata"].get("generation"))
            case None | "Resolving":
                answer = self._resolving.answer(key)
                local = "persistentVolumeClaim" in (obj["spec"].get("source") or {})
                return local or (answer is not None and answer.value is not None)
        return True

    def alias(self, key: Key, obj: Manifest) -> ObservedAlias:
        """Snapshot of a ModelAlias."""
        models = {f"{k.namespace}/{k.name}": self._store.get(k) for k in self._store.links(key) if k.kind == MODEL}
        return ObservedAlias(
            alias=obj,
            now=now(),
            models=models,
            namespace_labels=self._children.namespace_labels(key.namespace),
            taken=naming.taken(self._store, key, obj, self._children.has_namespace),
            shadows=Key(MODEL, key.namespace, key.name) in self._store,
            usage=self._usage.of(key),
        )
