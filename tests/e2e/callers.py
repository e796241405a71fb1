"""Pods that try to connect: what packets say about who reaches whom."""

import json
from collections.abc import Mapping
from dataclasses import dataclass

from e2e.demo import Demo

# One word per address: "open"; "closed", nobody listens there; "refused" by a NetworkPolicy, as e2e/cluster/go/netpol
# says it; or what else went wrong.
DIAL = """
import errno, socket, sys
for address in sys.argv[1:]:
    host, port = address.rsplit(":", 1)
    try:
        socket.create_connection((host, int(port)), 20).close()
        print("open")
    except OSError as error:
        print({errno.ECONNREFUSED: "closed", errno.EHOSTUNREACH: "refused"}.get(error.errno, error))
"""
ASK = """
import sys, urllib.error, urllib.request
url, body = sys.argv[1:]
try:
    print(urllib.request.urlopen(urllib.request.Request(url, body.encode() or None), timeout=60).status)
except urllib.error.HTTPError as error:
    print(error.code)
"""


@dataclass(frozen=True)
class Caller:
    """A pod that runs and does nothing until it is asked to; Moorage's own image, because it has Python."""

    demo: Demo
    namespace: str
    name: str

    def dial(self, *addresses: str) -> list[str]:
        """What one attempt to connect to each HOST:PORT finds: `open`, `closed` or `refused`."""
        return self._python(DIAL, *addresses).splitlines()

    def ask(self, url: str, body: str = "") -> int:
        """The status of a GET, or of a POST where there is a body."""
        return int(self._python(ASK, url, body))

    @property
    def address(self) -> str:
        found: str = json.loads(self._kubectl("get", "pod", self.name, "-o", "json"))["status"]["podIP"]
        return found

    def _python(self, program: str, *arguments: str) -> str:
        return self._kubectl("exec", self.name, "--", "/usr/bin/python3", "-c", program, *arguments)

    def _kubectl(self, *arguments: str) -> str:
        return self.demo.kubectl("-n", self.namespace, *arguments)


def start(
    demo: Demo, wanted: Mapping[tuple[str, str], Mapping[str, str]], ports: Mapping[str, int] | None = None
) -> dict[str, Caller]:
    """Running pods with these labels by (namespace, name), all with these named ports; keyed by NAMESPACE/NAME."""
    named = [{"name": name, "containerPort": port} for name, port in (ports or {}).items()]
    container = {
        "name": "caller",
        "image": demo.images["moorage"]["ref"],
        "command": ["/usr/bin/python3", "-c", "import signal; signal.pause()"],
        "ports": named,
    }
    spec = {"containers": [container], "terminationGracePeriodSeconds": 0, "automountServiceAccountToken": False}
    for (namespace, name), labels in wanted.items():
        meta = {"name": name, "namespace": namespace, "labels": dict(labels)}
        body = {"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": spec}
        demo.kubectl("apply", "-f", "-", input=json.dumps(body))
    for namespace, name in wanted:
        demo.kubectl("-n", namespace, "wait", f"pod/{name}", "--for=condition=Ready", "--timeout=120s")
    return {f"{namespace}/{name}": Caller(demo, namespace, name) for namespace, name in wanted}
