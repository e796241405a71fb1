"""API keys and HTTPS on a real kubelet, switched on as a user does: `moorage key create`, a Secret, `helm upgrade`."""

import http.client
import json
import os
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from e2e.demo import ROOT, SYSTEM, Demo
from tests.process.clients.conftest import clients_python

__all__ = ["clients_python"]  # the fixture

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1200)]

QUESTION = {"model": "chat", "max_tokens": 4, "messages": [{"role": "user", "content": "Hi"}]}
TLS_SECRET = "gateway-tls"


@dataclass
class Door:
    """The gateway with HTTPS and keys. `trust` is the certificate that its clients believe in now."""

    demo: Demo
    folder: Path
    host: str
    trust: Path

    def make_key(self, name: str, *options: str) -> str:
        """What the documentation says: `moorage key create NAME ... | kubectl apply -f -`."""
        command = [sys.executable, "-m", "moorage", "key", "create", name, *options]
        made = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
        self.demo.kubectl("apply", "-f", "-", input=made.stdout)
        return made.stderr.strip().splitlines()[-1]

    def curl(self, path: str, key: str = "", body: Any = None, trust: Path | None = None) -> tuple[int, dict[str, Any]]:
        """Status and JSON, by curl on a connection of its own; status 0: no connection that can be trusted."""
        command = ["curl", "--silent", "--cacert", str(trust or self.trust), "--max-time", "180"]
        command += ["--write-out", "\n%{http_code}", *(["--oauth2-bearer", key] if key else [])]
        command += ["--json", json.dumps(body)] if body is not None else []
        done = subprocess.run([*command, f"https://{self.host}{path}"], capture_output=True, text=True, timeout=200)
        text, _, status = done.stdout.rpartition("\n")
        return int(status), json.loads(text) if text else {}

    def chat(self, key: str = "", model: str = "chat") -> tuple[int, str]:
        """Status and error code of one chat."""
        status, body = self.curl("/v1/chat/completions", key, {**QUESTION, "model": model})
        return status, (body.get("error") or {}).get("code") or ""

    def until(self, key: str, wanted: tuple[int, str]) -> None:
        """Until every gateway pod answers so: six new connections in a row, over two pods."""
        deadline, row = time.monotonic() + 180, 0
        while row < 6:
            found = self.chat(key)
            row = row + 1 if found == wanted else 0
            assert time.monotonic() < deadline, found

    def certificate(self, name: str) -> Path:
        """A new certificate of the Service's address, in the Secret; who trusts it."""
        made = self.folder / name
        made.mkdir()
        options = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2"
        names = f"subjectAltName=IP:{self.host},DNS:moorage-gateway.{SYSTEM}"
        files = ["-out", str(made / "tls.crt"), "-keyout", str(made / "tls.key")]
        command = ["openssl", *options.split(), "-subj", f"/CN={name}", "-addext", names, *files]
        subprocess.run(command, check=True, capture_output=True)
        files = ["--cert", str(made / "tls.crt"), "--key", str(made / "tls.key")]
        secret = self.demo.kubectl(
            "-n", SYSTEM, "create", "secret", "tls", TLS_SECRET, *files, "--dry-run=client", "-o", "yaml"
        )
        self.demo.kubectl("apply", "-f", "-", input=secret)
        return made / "tls.crt"


@pytest.fixture(scope="module")
def door(demo: Demo, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Door]:
    service = json.loads(demo.kubectl("-n", SYSTEM, "get", "service", "moorage-gateway", "-o", "json"))
    made = Door(demo, tmp_path_factory.mktemp("certificates"), service["spec"]["clusterIP"], Path())
    made.trust = made.certificate("first")
    settings = ["--set", "gateway.requireKeys=true", "--set", f"gateway.tls.secretName={TLS_SECRET}"]
    chart = ("upgrade", "moorage", str(ROOT / "charts/moorage"), "--namespace", SYSTEM, "--reuse-values")
    demo.helm(*chart, *settings, "--wait", "--timeout", "6m")
    try:
        yield made
    finally:
        demo.helm("rollback", "moorage", "--namespace", SYSTEM, "--wait", "--timeout", "6m")
        demo.kubectl("-n", SYSTEM, "delete", "secret", TLS_SECRET, "--ignore-not-found")
        demo.kubectl("-n", SYSTEM, "delete", "secrets", "-l", "moorage.dev/api-key=true")


def test_nobody_comes_in_without_a_key_and_with_one_who_may(door: Door, clients_python: Path):
    assert door.chat() == (401, "invalid_api_key")
    key = door.make_key("app", "--for-namespace", "default", "--alias", "chat")
    door.until(key, (200, ""))
    assert door.chat("sk-moorage-" + "0" * 40) == (401, "invalid_api_key")
    assert door.chat(key, "tiny-llama") == (403, "model_not_allowed")
    assert door.chat(key, "no-such-model") == (403, "model_not_allowed"), "what there is, is not for this key to know"
    status, listed = door.curl("/v1/models", key)
    assert (status, [entry["id"] for entry in listed["data"]]) == (200, ["chat"])

    speak = [str(clients_python), str(ROOT / "tests/process/clients/speak_openai.py"), f"https://{door.host}/v1"]
    for scenario in ("chat", "stream"):  # OpenAI's own client, by the same address and key
        done = subprocess.run(
            [*speak, scenario, key], capture_output=True, text=True, timeout=120,
            env={**os.environ, "SSL_CERT_FILE": str(door.trust)},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["finish"] in ("length", "stop")
    told = logs(door.demo)
    assert "POST" in told or "serving on" in told, "the logs were read"
    assert key not in told
    assert "Bearer" not in told


def logs(demo: Demo) -> str:
    """Whatever the containers of Moorage and of the Models have written since they started."""
    found = ""
    for namespace in (SYSTEM, "default"):
        pods = demo.kubectl("-n", namespace, "get", "pods", "-o", "name", "--field-selector=status.phase=Running")
        for pod in pods.split():
            found += demo.kubectl("-n", namespace, "logs", pod, "--all-containers", "--tail=-1")
    return found


def test_a_key_over_its_limit_has_to_wait_and_the_others_have_not(door: Door):
    limited = door.make_key("limited", "--requests-per-minute", "8")
    other = door.make_key("unlimited")
    door.until(other, (200, ""))
    answers = []
    while (found := door.chat(limited)) != (429, "rate_limit_exceeded"):
        answers.append(found)
        assert len(answers) < 40, "two gateways, eight requests a minute each"
    assert set(answers) <= {(200, ""), (401, "invalid_api_key")}, "401: it had not arrived at both gateways yet"
    assert door.chat(other) == (200, "")


def test_a_revoked_key_opens_nothing_any_more(door: Door):
    key = door.make_key("leaver")
    door.until(key, (200, ""))
    door.demo.kubectl("-n", SYSTEM, "delete", "secret", "leaver")
    deleted = time.monotonic()
    door.until(key, (401, "invalid_api_key"))
    print(f"\nrevoked at every gateway {time.monotonic() - deleted:.1f} s after the deletion, six requests included")


def test_a_renewed_certificate_is_shown_to_who_comes_and_cuts_nobody_off(door: Door):
    key = door.make_key("stayer", "--alias", "chat")
    door.until(key, (200, ""))
    old = door.trust
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
    stayer = http.client.HTTPSConnection(door.host, context=ssl.create_default_context(cafile=str(old)), timeout=180)
    stayer.connect()
    sock = stayer.sock
    door.trust = door.certificate("second")
    began, row, asked = time.monotonic(), 0, 0
    while row < 6:  # new connections, over two pods
        stayer.request("POST", "/v1/chat/completions", json.dumps(QUESTION), headers)
        answer = stayer.getresponse()
        answer.read()
        assert answer.status == 200
        asked += 1
        row = row + 1 if door.curl("/v1/models", key)[0] == 200 else 0
        assert row or door.curl("/v1/models", key, trust=old)[0] in (200, 0), "the old one or the new one, always"
        assert time.monotonic() - began < 240, "the kubelet brings a changed Secret within two minutes"
    print(f"\nevery gateway shows the new certificate {time.monotonic() - began:.0f} s after the Secret changed")
    assert door.curl("/v1/models", key, trust=old)[0] == 0, "nobody shows the old one any more"
    stayer.request("POST", "/v1/chat/completions", json.dumps(QUESTION), headers)
    assert stayer.getresponse().status == 200
    assert stayer.sock is sock, f"the connection of before is still the same, {asked} requests later"
