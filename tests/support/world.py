"""A small world for planners: it does at once what a cluster would do later, and only when a test says so.

world = World(model(source={"huggingFace": {"repo": "org/tiny"}}))
world.settle()                       # plans are carried out until nothing changes any more
world.answer_resolve(GGUF)           # the hub answers
world.download_done()                # the Job's pod ends well
world.pod_ready()                    # the kubelet says so
"""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from moorage import names
from moorage.control import dra, projections
from moorage.placement.gpu_report import GpuReport
from moorage.placement.inventory import NodePool, Reservation, build
from moorage.planning.download import plan_download
from moorage.planning.model import plan_model
from moorage.planning.neighbours import Around
from moorage.planning.types import (
    Answer,
    Defaults,
    ObservedDownload,
    ObservedModel,
    Plan,
    Resolve,
    Server,
    WarmUp,
    Window,
)
from moorage.planning.usage import Hearing, Usage
from moorage.sizing.facts import transformer_facts
from moorage.sizing.model import Confidence
from moorage.sizing.transformer import TransformerModel

DEFAULTS = Defaults(
    moorage_image="moorage:1",
    llamacpp_image="llamacpp:1",
    llamacpp_nvidia_image="llamacpp-cuda:1",
    llamacpp_amd_image="llamacpp-rocm:1",
    vllm_image="vllm-cpu:v0.32.0",
    vllm_nvidia_image="vllm:v0.32.0",
    vllm_amd_image="vllm-rocm:v0.32.0",
)

GGUF = {
    "commit": "c" * 40,
    "url": "https://hub/org/tiny/tree/c",
    "files": [{"path": "tiny-Q4_K_M.gguf", "sizeBytes": 4 * 2**30, "sha256": "a" * 64}],
    "selected": True,
    "facts": {
        "format": "GGUF",
        "mainFile": "tiny-Q4_K_M.gguf",
        "architecture": "llama",
        "contextLength": 32768,
        "parameters": 8_000_000_000,
        "quantization": "Q4_K_M",
    },
}


SAFETENSORS = {
    "commit": "d" * 40,
    "url": "https://hub/org/qwen/tree/d",
    "files": [
        {"path": "config.json", "sizeBytes": 663},
        {"path": "model.safetensors", "sizeBytes": 15_231_233_024, "sha256": "b" * 64},
        {"path": "tokenizer.json", "sizeBytes": 7_031_673},
    ],
    "selected": True,
    "facts": {
        "format": "Safetensors",
        "mainFile": "config.json",
        "toolCallParser": "hermes",
        **transformer_facts(
            TransformerModel(
                architecture="Qwen2ForCausalLM",
                context_length=32768,
                parameters=7_615_616_512,
                quantization="BF16",
                weight_bytes=15_231_233_024,
                cache_bytes_per_value=2,
                hidden=3584,
                heads=28,
                kv_heads=4,
                key_length=128,
                value_length=128,
                latent_width=0,
                full_layers=28,
                window_layers=0,
                window=0,
                vocabulary=152064,
                feed_forward=18944,
                experts=0,
                quantization_group=0,
                confidence=Confidence.BOUNDED,
            )
        ),
    },
}
"""Qwen2.5 7B as its repository tells it."""


def gpu_node(name: str, mib: int, gpus: int = 1) -> dict[str, Any]:
    """A node with NVIDIA GPUs as GPU feature discovery labels it."""
    return {
        "name": name,
        "ready": True,
        "unschedulable": False,
        "taints": [],
        "annotations": {},
        "gpus": {"nvidia.com/gpu": gpus},
        "labels": {
            "kubernetes.io/hostname": name,
            "nvidia.com/gpu.memory": str(mib),
            "nvidia.com/gpu.count": str(gpus),
            "nvidia.com/gpu.product": "NVIDIA-SIMULATED",
            "nvidia.com/gpu.sharing-strategy": "none",
        },
    }


def model(name: str = "tiny", annotations: dict[str, str] | None = None, **spec: Any) -> dict[str, Any]:
    """A Model as the API server would store it, on the CPU unless the test says otherwise."""
    spec.setdefault("source", {"huggingFace": {"repo": "org/tiny", "quantization": "Q4_K_M"}})
    spec.setdefault("accelerator", {"vendor": "None"})
    meta = {"name": name, "namespace": "ns", "uid": f"uid-{name}", "generation": 1, "resourceVersion": "1"}
    return {
        "apiVersion": names.API_VERSION,
        "kind": "Model",
        "metadata": {**meta, "annotations": annotations or {}},
        "spec": spec,
    }


def claim(name: str, **facts: Any) -> dict[str, Any]:
    """A claim as somebody else made it, bound."""
    size = {"resources": {"requests": {"storage": "10Gi"}}}
    status = {"phase": "Bound", "capacity": {"storage": "10Gi"}}
    obj = {"metadata": {"name": name, "uid": "x"}, "spec": {"accessModes": ["ReadWriteOnce"], **size}, "status": status}
    found = projections.claim(obj)
    assert found is not None
    return {**found, **facts}


class World:
    """One Model and its download; children exist as projections of the very manifests that were planned."""

    def __init__(self, obj: dict[str, Any], defaults: Defaults = DEFAULTS) -> None:
        self.model, self.defaults = obj, defaults
        self.now = datetime(2026, 1, 1, tzinfo=UTC)
        self.download: dict[str, Any] | None = None
        self.children: dict[tuple[str, str], dict[str, Any]] = {}
        self.manifests: dict[tuple[str, str], dict[str, Any]] = {}
        self.pods: dict[str, dict[str, Any]] = {}
        self.resolved: Answer | None = None
        self.download_resolved: Answer | None = None
        self.warmed: Answer | None = None
        self.progress: dict[str, Any] | None = None
        self.nodes: list[dict[str, Any]] = []
        self.slices: list[dict[str, Any]] = []
        self.node_pools: tuple[NodePool, ...] = ()
        self.reservations: tuple[Reservation, ...] = ()
        self.users: tuple[str, ...] = (obj["metadata"]["name"],)
        self.events: list[tuple[str, str]] = []
        self.asked: list[Any] = []
        self.writes = 0
        self.status_writes = 0
        self.storage_class: dict[str, Any] | None = None
        self.storage_class_missing: str | None = None
        self.ahead = 0
        self.usage = Usage()
        self.strangers: list[dict[str, Any]] = []  # pods of others
        self.around: Around | None = None
        self.evicted_for = ""
        self.places: dict[str, Any] = {}
        self.window: Window | None = None
        self.budgets: tuple[dict[str, Any], ...] = ()  # of people
        self.quotas: tuple[dict[str, Any], ...] = ()
        self.limit_ranges: tuple[dict[str, Any], ...] = ()
        self.reports: dict[str, GpuReport] = {}
        self.waited = 0.0
        self.volume: dict[str, Any] | None = None
        self.server: Server | None = None

    # -- passes ---------------------------------------------------------------------------------------------------

    def settle(self) -> "World":
        """Plan and carry out until a round writes nothing; fails if that takes more than 20 rounds."""
        for _ in range(20):
            before = self.writes
            self._pass_model()
            if self.download is not None:
                self._pass_download()
            if self.writes == before:
                return self
        raise AssertionError("the planners never come to rest")

    def plan(self) -> Plan:
        seen = self.observe()
        plan = plan_model(seen)
        if plan.look_around and self.around is not None:
            plan = plan_model(replace(seen, around=self.around))
        return plan

    def observe(self) -> ObservedModel:
        children = {kind: self.children.get((kind, names.model_child(self.name))) for kind in ("Deployment", "Service")}
        return ObservedModel(
            model=self.model,
            now=self.now,
            defaults=self.defaults,
            download=self.download,
            deployment=children["Deployment"],
            service=children["Service"],
            pods=tuple(p for p in self.pods.values() if names.MODEL_LABEL in p["labels"]),
            jobs=tuple(c for (k, _), c in self.children.items() if k == "Job" and names.MODEL_LABEL in c["labels"]),
            reservations=self.reservations,
            inventory=build(
                self.nodes,
                [p for p in (*self.pods.values(), *self.strangers) if p["gpus"]],
                self.slices,
                node_pools=self.node_pools,
            ),
            claim_templates=tuple(c for (k, _), c in self.children.items() if k == "ResourceClaimTemplate"),
            resolved=self.resolved,
            warmed=self.warmed,
            volume=self.volume,
            usage=self.usage,
            budget=self.children.get(("PodDisruptionBudget", names.model_child(self.name))),
            budgets=self.budgets,
            quotas=self.quotas,
            limit_ranges=self.limit_ranges,
            evicted_for=self.evicted_for,
            **self.places,
            gpu_reports=self.reports,
            waited_seconds=self.waited,
        )

    def plan_download(self) -> Plan:
        assert self.download is not None
        child = names.download_child(self.download["metadata"]["name"])
        storage = self.download["spec"].get("storage", {})
        prefilled = self.download["spec"]["source"].get("persistentVolumeClaim", {})
        claim = prefilled.get("claimName") or storage.get("claimName") or child
        return plan_download(
            ObservedDownload(
                download=self.download,
                now=self.now,
                defaults=self.defaults,
                claim=self.children.get(("PersistentVolumeClaim", claim)),
                job=self.children.get(("Job", child)),
                pods=tuple(p for p in self.pods.values() if names.DOWNLOAD_LABEL in p["labels"]),
                users=self.users,
                progress=self.progress,
                resolved=self.download_resolved,
                storage_class=self.storage_class,
                storage_class_missing=self.storage_class_missing,
                ahead=self.ahead,
                window=self.window,
                volume=self.volume,
                server=self.server,
            )
        )

    def _pass_model(self) -> None:
        plan = self.plan()
        self._carry_out(plan)
        self._write_status(self.model, plan)

    def _pass_download(self) -> None:
        plan = self.plan_download()
        download = self.download
        self._carry_out(plan)
        if self.download is download and download is not None:
            self._write_status(download, plan)

    def _write_status(self, obj: dict[str, Any], plan: Plan) -> None:
        if plan.status is not None and plan.status != obj.get("status"):
            obj["status"] = plan.status
            self.writes += 1
            self.status_writes += 1

    def _carry_out(self, plan: Plan) -> None:
        self.asked = list(plan.ask) + [a for a in self.asked if type(a) not in {type(x) for x in plan.ask}]
        self.events += [(e.type, e.reason) for e in plan.events]
        for ref in plan.delete:
            self.writes += 1
            if ref.kind == "ModelDownload":
                self.download = None
                continue
            gone = self.children.pop((ref.kind, ref.name))
            assert gone["uid"] == ref.uid
            self.pods = {k: p for k, p in self.pods.items() if p.get("owner") != gone["uid"]}
        for patch in plan.patch:
            self.writes += 1
            if patch.ref.kind == "Pod":
                cost = patch.body["metadata"]["annotations"][names.DELETION_COST]
                self.pods[patch.ref.name]["deletionCost"] = cost or ""
                continue
            self.children[(patch.ref.kind, patch.ref.name)]["wanted"] = patch.body["spec"]["replicas"]
        for manifest in plan.apply:
            self._apply(manifest)

    def _apply(self, manifest: dict[str, Any]) -> None:
        kind, meta = manifest["kind"], manifest["metadata"]
        live = self.children.get((kind, meta["name"]))
        if kind == "ModelDownload":
            if self.download is None:
                self.writes += 1
                extra = {"uid": "uid-download", "generation": 1, "resourceVersion": "1"}
                self.download = {**manifest, "metadata": {**meta, **extra}}
            return
        if live and live["manifestHash"] == meta["annotations"][names.MANIFEST_HASH]:
            return
        self.writes += 1
        uid = live["uid"] if live else f"uid-{kind}-{meta['name']}"
        full = {**manifest, "metadata": {**meta, "uid": uid, "generation": (live or {}).get("generation", 0) + 1}}
        if kind == "Service":
            full["spec"] = {**full["spec"], "clusterIP": "10.96.0.9"}
        project = {
            "Deployment": projections.deployment,
            "Service": projections.service,
            "PodDisruptionBudget": projections.disruption_budget,
            "Job": projections.job,
            "PersistentVolumeClaim": projections.claim,
            "ResourceClaimTemplate": dra.claim_template,
        }[kind]
        found = project(full)
        assert found is not None
        if kind == "Deployment" and live:  # the old pods go on until the controller has looked
            kept = ("ready", "replicas", "observedGeneration")
            found |= {k: live[k] for k in kept} | {"updated": 0}
        self.children[(kind, meta["name"])] = found
        self.manifests[(kind, meta["name"])] = manifest

    # -- what the cluster does ---------------------------------------------------------------------------------------

    @property
    def name(self) -> str:
        return str(self.model["metadata"]["name"])

    def later(self, seconds: float) -> "World":
        self.now += timedelta(seconds=seconds)
        return self

    def change(self, **spec: Any) -> "World":
        """A person edits the Model."""
        self.model = {
            **self.model,
            "metadata": {**self.model["metadata"], "generation": self.model["metadata"]["generation"] + 1},
            "spec": {**self.model["spec"], **spec},
        }
        return self

    def annotate(self, key: str, value: str) -> "World":
        self.model["metadata"]["annotations"] = {**self.model["metadata"]["annotations"], key: value}
        return self

    def answer_source(self) -> "World":
        """The hub answers the Model's question; nothing is asked yet for the download."""
        ask = next(a for a in self.asked if isinstance(a, Resolve))
        self.resolved = Answer(ask.inputs, GGUF)
        return self.settle()

    def answer_resolve(self, value: dict[str, Any] | None = None, reason: str = "", message: str = "") -> "World":
        """The hub answers the question that was asked, for the Model and the download alike."""
        self.settle()
        ask = next(a for a in self.asked if isinstance(a, Resolve))
        retryable = reason in ("HubUnreachable", "RateLimited", "Network", "Timeout")
        self.resolved = Answer(ask.inputs, value, reason, message, retryable)
        self.settle()
        again = next(a for a in self.asked if isinstance(a, Resolve))
        self.download_resolved = Answer(again.inputs, value, reason, message, retryable)
        return self.settle()

    def job(self, label: str = names.DOWNLOAD_LABEL) -> dict[str, Any]:
        return next(c for (k, _), c in self.children.items() if k == "Job" and label in c["labels"])

    def job_ends(self, code: int, message: str, label: str = names.DOWNLOAD_LABEL, *, complete: bool) -> "World":
        job = self.job(label)
        container = "download" if label == names.DOWNLOAD_LABEL else "bench"
        ended = {"exitCode": code, "message": message, "finishedAt": "2026-01-01T00:00:09Z"}
        self.pods[f"pod-{job['name']}"] = {
            "name": f"pod-{job['name']}", "uid": f"pod-{job['uid']}", "owner": job["uid"], "labels": job["labels"],
            "phase": "Succeeded" if complete else "Failed", "node": "n1", "ip": "", "ready": False, "gpus": {},
            "created": "2026-01-01T00:00:00Z", "unschedulable": "", "deleting": False, "templateHash": "",
            "containers": [{"name": container, "ready": False, "restarts": 0, "waiting": None, "last": None,
                            "terminated": ended, "startedAt": None}],
        }  # fmt: skip
        job["complete"], job["failed"] = complete, not complete
        return self.settle()

    def download_done(self) -> "World":
        result = (
            '{"reason": "Complete", "message": "done", "bytes": 4294967296, "commit": "%s", "manifestDigest": "d1"}'
        )
        return self.job_ends(0, result % ("c" * 40), complete=True)

    def pod(self, uid: str = "p1", **state: Any) -> "World":
        """A pod of the server in any state; defaults: scheduled, container running, not ready."""
        self.pod_is(uid, **state)
        return self.settle()

    def pod_is(self, uid: str = "p1", **state: Any) -> None:
        """The same, before anybody has looked."""
        labels = {names.MODEL_LABEL: names.dns_label(self.name), names.COMPONENT: "server"}
        container = {
            "name": "engine", "ready": state.get("ready", False), "restarts": state.pop("restarts", 0),
            "startedAt": "2026-01-01T00:00:03Z", "waiting": state.pop("waiting", None),
            "terminated": state.pop("terminated", None), "last": state.pop("last", None),
        }  # fmt: skip
        self.pods[uid] = {
            "name": uid, "namespace": "ns", "uid": uid, "owner": "rs", "labels": labels, "phase": "Running",
            "node": "node-1",
            "ip": "10.0.0.1",
            "ready": False, "gpus": {}, "created": "2026-01-01T00:00:00Z", "scheduledAt": "2026-01-01T00:00:01Z",
            "readyAt": "2026-01-01T00:00:05Z", "unschedulable": "", "deleting": False, "templateHash": "t",
            "containers": [container], **state,
        }  # fmt: skip
        ready = sum(1 for p in self.pods.values() if p["ready"] and names.MODEL_LABEL in p["labels"])
        live = self.children[("Deployment", names.model_child(self.name))]
        live.update(ready=ready, replicas=live["wanted"], updated=live["wanted"], observedGeneration=live["generation"])

    def pods_go(self) -> "World":
        """The pods that are no longer wanted are gone."""
        self.pods = {k: p for k, p in self.pods.items() if names.MODEL_LABEL not in p["labels"]}
        self.children[("Deployment", names.model_child(self.name))].update(ready=0, replicas=0, updated=0)
        return self.settle()

    def used(self, **use: Any) -> "World":
        """Every gateway has spoken, and this is what they say of the Model; times are seconds ago."""
        for moment in ("last_used", "wanted_at"):
            if moment in use:
                use[moment] = int(self.now.timestamp()) - use[moment]
        self.usage = Usage(hearing=Hearing.COMPLETE, **use)
        return self.settle()

    def token(self) -> "World":
        """The server answers the warm-up."""
        ask = next(a for a in self.asked if isinstance(a, WarmUp))
        self.warmed = Answer(ask.template, {"firstTokenMilliseconds": 12, "version": "b1"})
        return self.settle()

    def ready(self) -> "World":
        """Everything up to Ready."""
        return self.answer_resolve(GGUF).download_done().pod(ready=True).token()

    # -- what a person sees -----------------------------------------------------------------------------------------

    def condition(self, kind: str, obj: dict[str, Any] | None = None) -> tuple[str, str, str]:
        """(status, reason, message) of one condition."""
        conditions = (obj or self.model)["status"]["conditions"]
        found = next(c for c in conditions if c["type"] == kind)
        return found["status"], found["reason"], found["message"]

    def of_download(self, kind: str) -> tuple[str, str, str]:
        assert self.download is not None
        return self.condition(kind, self.download)

    @property
    def phase(self) -> str:
        return str(self.model["status"]["phase"])

    @property
    def message(self) -> str:
        return str(self.model["status"]["summary"]["message"])
