"""The kit's own test: does this cluster do what scenarios take for granted?"""

import json
import secrets
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from . import oci, processes
from .cluster import Cluster
from .errors import ClusterError
from .runner import program

IMAGE = "localhost/moorage/smoke:1"
_MANIFEST = Path(__file__).parent / "manifests" / "smoke.yaml"
_PATIENCE = 60  # seconds for anything to happen


class Smoke:
    """The checks, in one namespace of their own."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.namespace = f"smoke-{secrets.token_hex(3)}"

    def kubectl(self, *arguments: str) -> str:
        return self.cluster.kubectl(f"--namespace={self.namespace}", *arguments)

    def get(self, *what: str) -> Any:
        return json.loads(self.kubectl("get", *what, "--output=json"))

    def set_up(self) -> None:
        """The image, a namespace at Pod Security `restricted`, and the objects."""
        archive = self.cluster.folder / "smoke.tar"
        oci.write_archive(archive, IMAGE, program("smoke"), command=["/smoke"])
        self.cluster.load(archive)
        self.kubectl("create", "namespace", self.namespace)
        self.kubectl("label", "namespace", self.namespace, "pod-security.kubernetes.io/enforce=restricted")
        self.kubectl("apply", f"--filename={_MANIFEST}")

    def pod_runs(self) -> None:
        self.kubectl("wait", "deployment/web", "--for=condition=Available", f"--timeout={_PATIENCE}s")

    def service_answers_from_host(self) -> None:
        address = self.get("service/web")["spec"]["clusterIP"]
        self._eventually(lambda: _body(f"http://{address}/from-host") == "smoke ok\n")

    def pod_answers_from_host(self) -> None:
        address = self.get("pods", "--selector=app=web")["items"][0]["status"]["podIP"]
        self._eventually(lambda: _body(f"http://{address}:8080/direct") == "smoke ok\n")

    def service_answers_by_name(self) -> None:
        self._ends("client", "Succeeded")

    def volume_is_written(self) -> None:
        self._ends("roomy", "Succeeded")
        volume = self.get("persistentvolumeclaim/roomy")["spec"]["volumeName"]
        written = (self.cluster.folder / "volumes" / volume / "file").stat()
        _expect((written.st_size, written.st_uid), (2097152, 65532))

    def small_volume_is_full(self) -> None:
        self._ends("tight", "Failed")
        _expect("no space left on device" in self.kubectl("logs", "tight"), True)

    def logs_and_exec(self) -> None:
        _expect("served /by-name" in self.kubectl("logs", "deployment/web"), True)
        answer = self.kubectl("exec", "deployment/web", "--", "/smoke", "get", "http://web/from-itself", "smoke ok")
        _expect(answer, "smoke ok\n")

    def port_forward(self) -> None:
        command = [str(program("kubectl")), f"--kubeconfig={self.cluster.kubeconfig}", f"--namespace={self.namespace}"]
        with subprocess.Popen(
            [*command, "port-forward", "service/web", ":80"], stdout=subprocess.PIPE, text=True
        ) as job:
            try:
                assert job.stdout is not None
                local = job.stdout.readline().split(" -> ")[0].rpartition(" ")[2]  # Forwarding from 127.0.0.1:1 -> 2
                _expect(_body(f"http://{local}/forwarded"), "smoke ok\n")
            finally:
                job.terminate()

    def volumes_end_with_their_claims(self) -> None:
        volumes = {claim["spec"]["volumeName"] for claim in self.get("persistentvolumeclaims")["items"]}
        self.kubectl("delete", f"--filename={_MANIFEST}", "--wait=false")
        root = self.cluster.folder / "volumes"
        self._eventually(lambda: not volumes & {entry.name for entry in root.iterdir()})
        self.kubectl("delete", "namespace", self.namespace, "--wait=false")  # its controller takes ten seconds

    def _ends(self, pod: str, phase: str) -> None:
        self._eventually(lambda: self.get(f"pod/{pod}")["status"]["phase"] in {"Succeeded", "Failed"})
        _expect(self.get(f"pod/{pod}")["status"]["phase"], phase)

    def _eventually(self, happened: Callable[[], bool]) -> None:
        for _ in processes.ticks(_PATIENCE, 0.2):
            if happened():
                return
        raise ClusterError(f"did not happen within {_PATIENCE} s; see `kubectl get all -n {self.namespace}`")


def run(cluster: Cluster, say: Callable[[str], None]) -> None:
    """Run every check; raises ClusterError naming the first that fails, and leaves its objects to be looked at."""
    smoke = Smoke(cluster)
    checks = [
        smoke.set_up,
        smoke.pod_runs,
        smoke.service_answers_from_host,
        smoke.pod_answers_from_host,
        smoke.service_answers_by_name,
        smoke.volume_is_written,
        smoke.small_volume_is_full,
        smoke.logs_and_exec,
        smoke.port_forward,
        smoke.volumes_end_with_their_claims,
    ]
    for check in checks:
        with _reported(check.__name__.replace("_", " "), say):
            check()


@contextmanager
def _reported(title: str, say: Callable[[str], None]) -> Iterator[None]:
    began = time.monotonic()
    try:
        yield
    except ClusterError as error:
        raise ClusterError(f"smoke test, {title}: {error}") from error
    say(f"ok {time.monotonic() - began:6.1f} s  {title}")


def _body(url: str) -> str:
    """The body of a GET, empty when there is no good answer."""
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url, timeout=2) as answer:
            return str(answer.read().decode())
    except OSError:
        return ""


def _expect(found: object, wanted: object) -> None:
    if found != wanted:
        raise ClusterError(f"found {found!r}, wanted {wanted!r}")
