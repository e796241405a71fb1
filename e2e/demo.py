"""`make demo`: the main job of Moorage, for real, on an embedded one-machine Kubernetes.

A cluster comes up, the chart is installed, Models are applied, downloaded, served, benchmarked and asked one question.
With `CLUSTER=current` all of that happens in the present kubeconfig context; its nodes pull the images from `REGISTRY`.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from e2e.cluster import Cluster, ClusterError

ROOT = Path(__file__).resolve().parents[1]
SCENARIO = ROOT / "e2e/scenarios/demo"
SYSTEM = "moorage-system"
GATEWAY = f"/api/v1/namespaces/{SYSTEM}/services/moorage-gateway:http/proxy/v1/chat/completions"
NEWEST = {"moorage": "images.moorage", "llamacpp-cpu": "images.llamaCpp"}
"""Images that the chart is told of, and by which value."""


class DemoError(Exception):
    """The demo cannot go on; the message says why and what to do."""


def say(text: str) -> None:
    print(f"\033[1m==> {text}\033[0m" if sys.stdout.isatty() else f"==> {text}", flush=True)


@dataclass
class Demo:
    """One run: where the cluster is and which images its nodes know."""

    name: str = "demo"
    current: bool = False
    newest: dict[str, str] = field(default_factory=lambda: dict(NEWEST))
    cluster: Cluster | None = None
    images: dict[str, dict[str, str]] = field(default_factory=dict)
    started: float = field(default_factory=time.monotonic)

    # -- tools ----------------------------------------------------------------------------------------------------

    def run(self, *command: str, input: str | None = None, check: bool = True, timeout: int = 900) -> str:
        done = subprocess.run(command, input=input, capture_output=True, text=True, timeout=timeout, cwd=ROOT)
        if check and done.returncode:
            raise DemoError(f"{' '.join(command[:6])} ...: {done.stderr.strip() or done.stdout.strip()}")
        return done.stdout

    def _configured(self, binary: str) -> list[str]:
        if self.current:
            return [binary]
        assert self.cluster is not None
        return [str(self.cluster.binary(binary)), "--kubeconfig", str(self.cluster.kubeconfig)]

    def kubectl(self, *args: str, input: str | None = None, check: bool = True) -> str:
        return self.run(*self._configured("kubectl"), *args, input=input, check=check)

    def helm(self, *args: str) -> str:
        return self.run(*self._configured("helm"), *args)

    # -- steps ----------------------------------------------------------------------------------------------------

    def up(self) -> None:
        if self.current:
            say(f"using the current context: {self.run('kubectl', 'config', 'current-context').strip()}")
            return
        say("a real Kubernetes on this machine (the first time it is built from Go modules, about ten minutes)")
        self.cluster = Cluster(self.name, say=lambda text: print(f"    {text}", flush=True))
        self.cluster.up()

    def load_images(self) -> None:
        if self.current:
            registry = os.environ.get("REGISTRY")
            if not registry:
                raise DemoError(
                    "CLUSTER=current needs REGISTRY=HOST/PATH with the images moorage, llamacpp-cpu and localhub; "
                    "build them with `docker build -f images/NAME/Containerfile .`, push them, or unset CLUSTER"
                )
            tag = os.environ.get("TAG", "latest")
            self.images = {name: {"ref": f"{registry}/{name}:{tag}"} for name in self._wanted()}
            return
        say("images (the first time they are built from Debian and PyPI packages, about a minute)")
        built = subprocess.run(
            [sys.executable, "images/build.py", "--print-json", *self._wanted()],
            cwd=ROOT, stdout=subprocess.PIPE, text=True, timeout=1800,
        )  # fmt: skip
        if built.returncode:
            raise DemoError("the images could not be built; the lines above say why")
        self.images = json.loads(built.stdout)
        assert self.cluster is not None
        self.cluster.load(*(Path(image["archive"]) for image in self.images.values()))

    def _wanted(self) -> tuple[str, ...]:
        return (*self.newest, "localhub")

    def install(self) -> None:
        say("the Helm chart")
        settings = [f"{key}={self.images[name]['ref']}" for name, key in self.newest.items()]
        settings.append("sources.huggingFaceEndpoint=http://hub.hub:8090")
        sets = [part for setting in settings for part in ("--set", setting)]
        self.helm(
            *("upgrade", "--install", "moorage", "charts/moorage", "--namespace", SYSTEM, "--create-namespace"),
            *(*sets, "--wait", "--timeout", "6m"),
        )
        print(f"    the operator and the gateway run in namespace {SYSTEM}", flush=True)

    def hub(self) -> None:
        say("a local Hugging Face-compatible hub with tiny random-weight models")
        manifest = (SCENARIO / "hub.yaml").read_text().replace("LOCALHUB_IMAGE", self.images["localhub"]["ref"])
        self.kubectl("apply", "-f", "-", input=manifest)
        self.kubectl("-n", "hub", "rollout", "status", "deployment/hub", "--timeout=300s")

    def models(self) -> None:
        say(f"kubectl apply -f {(SCENARIO / 'models.yaml').relative_to(ROOT)}")
        self.kubectl("apply", "-f", str(SCENARIO / "models.yaml"))
        self.watch(timeout=600)

    def watch(self, timeout: float) -> None:
        """Print each Model's line when it changes, until all are Ready with every condition True."""
        deadline, shown = time.monotonic() + timeout, dict[str, str]()
        while True:
            models = json.loads(self.kubectl("get", "models", "-o", "json"))["items"]
            for model in models:
                line = _line(model)
                if shown.get(model["metadata"]["name"]) != line:
                    shown[model["metadata"]["name"]] = line
                    print(f"    {time.monotonic() - self.started:5.1f}s  {line}", flush=True)
            if models and all(not unmet(m) for m in models):
                return
            if time.monotonic() > deadline:
                raise DemoError(self._explain(models))
            time.sleep(0.3)

    def _explain(self, models: list[dict]) -> str:
        stuck = {m["metadata"]["name"]: unmet(m) for m in models if unmet(m)}
        events = self.kubectl("get", "events", "--sort-by=.lastTimestamp", check=False).splitlines()[-12:]
        pods = self.kubectl("get", "pods", "-A", "-o", "wide", check=False)
        return f"not Ready in time: {json.dumps(stuck, indent=1)}\n{pods}\n" + "\n".join(events)

    def show(self) -> None:
        say("kubectl get models,modeldownloads,modelaliases")
        print(self.kubectl("get", "models"))
        print(self.kubectl("get", "modeldownloads"))
        print(self.kubectl("get", "modelaliases"))

    def chat(self) -> None:
        say("one chat through the gateway, with the alias chat: it adds a system prompt and max_tokens")
        question = {"model": "chat", "messages": [{"role": "user", "content": "Hello!"}]}
        answer = json.loads(self.kubectl("create", "--raw", GATEWAY, "-f", "-", input=json.dumps(question)))
        text = answer["choices"][0]["message"]["content"]
        usage = answer["usage"]
        print(f"    {answer['model']} answers: {text!r}  (random weights, so random words)")
        print(f"    {usage['prompt_tokens']} prompt tokens, {usage['completion_tokens']} generated")

    def farewell(self) -> None:
        seconds = time.monotonic() - self.started
        context = "" if self.current else f"export KUBECONFIG={self._kubeconfig()}\n    "
        down = "make demo-down" if self.name == "demo" else f"python -m e2e.demo --name {self.name} --down"
        end = "helm uninstall moorage -n moorage-system" if self.current else down
        print(f"""
Done in {seconds:.0f} s. Go on:
    {context}kubectl get models -o wide
    kubectl describe model tiny-llama
    kubectl scale model tiny-llama --replicas=0     # unload it; --replicas=1 loads it again
    kubectl explain model.spec
    kubectl -n {SYSTEM} port-forward service/moorage-gateway 8000:80 &
    curl http://127.0.0.1:8000/v1/models            # every Model and alias, at one address
Clean up:
    {end}""")

    def _kubeconfig(self) -> Path:
        assert self.cluster is not None
        path = self.cluster.kubeconfig
        return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path

    def go(self) -> None:
        for step in (self.up, self.load_images, self.install, self.hub, self.models, self.show, self.chat):
            step()
        self.farewell()


def _line(model: dict) -> str:
    status = model.get("status") or {}
    message = (status.get("summary") or {}).get("message", "")
    return f"{model['metadata']['name']:<14} {status.get('phase', 'Pending'):<12} {message}"


EXPECTED = ("Accepted", "Placed", "Downloaded", "Serving", "Ready", "UpToDate", "Active", "Benchmarked")


def unmet(model: dict) -> dict[str, str]:
    """Conditions that are not as they should be at the end, with their messages; empty when all is well."""
    found = {c["type"]: c for c in (model.get("status") or {}).get("conditions", ())}
    bad = {k: found.get(k, {}).get("message", "not set") for k in EXPECTED if found.get(k, {}).get("status") != "True"}
    bad |= {k: found[k]["message"] for k in ("Stalled", "Reconciling") if found.get(k, {}).get("status") == "True"}
    return bad


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--down", action="store_true", help="stop the demo's cluster and remove what it left")
    parser.add_argument("--name", default="demo", help="name of the cluster (default: demo)")
    options = parser.parse_args()
    demo = Demo(name=options.name, current=os.environ.get("CLUSTER") == "current")
    try:
        if options.down:
            Cluster(options.name, say=print).down()
        else:
            demo.go()
    except (DemoError, ClusterError, subprocess.TimeoutExpired) as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
