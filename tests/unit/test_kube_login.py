import json
import os
import stat
from datetime import datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from moorage.errors import MoorageError, Unavailable
from moorage.kube.login import log_in

# Any certificate does; its key was thrown away.
CERTIFICATE = """
-----BEGIN CERTIFICATE-----
MIIBdTCCARugAwIBAgIUKnRceNLI/hm9QfvqON4JQD8xdtswCgYIKoZIzj0EAwIw
DzENMAsGA1UEAwwEdGVzdDAgFw0yNjExMjEwMDM2MTZaGA8yMTI2MTAyODAwMzYx
NlowDzENMAsGA1UEAwwEdGVzdDBZMBMGByqGSM49AgEGCCqGSM49AwEHA0IABHxM
/okWYsPLTA6MWd1z7GcEkTWdvxkZEGUMhSxn37hUDl4vvMnupGNXsUXWto2hDxN+
y2XaPL6vxo9ekLgHhUujUzBRMB0GA1UdDgQWBBQhAat2B+ijNu2zhtLhJhze9yEW
gzAfBgNVHSMEGDAWgBQhAat2B+ijNu2zhtLhJhze9yEWgzAPBgNVHRMBAf8EBTAD
AQH/MAoGCCqGSM49BAMCA0gAMEUCIQC9RhZiFHEWBMbF8VdEG7oUiD59ZepvZb/W
lEs6Ds79OwIgd9VdIXiq5cGmLzL3wGnqnpVdXtzKwgltsor6zhgUIQE=
-----END CERTIFICATE-----
"""


@pytest.fixture(autouse=True)
def _nothing_in_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("KUBECONFIG", "KUBERNETES_SERVICE_HOST", "KUBERNETES_SERVICE_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name in ("http_proxy", "https_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


def write(path: Path, user: dict[str, Any] | None, server: str = "http://127.0.0.1:1/", **cluster: Any) -> Path:
    path.parent.mkdir(exist_ok=True, parents=True)
    context = {"cluster": "c"} | ({"user": "u"} if user is not None else {})
    config = {
        "clusters": [{"name": "c", "cluster": {"server": server, **cluster}}],
        "users": [{"name": "u", "user": user}] if user is not None else [],
        "contexts": [
            {"name": "x", "context": context},
            {"name": "y", "context": {**context, "namespace": "team-y"}},
        ],
        "current-context": "x",
    }
    path.write_text(yaml.safe_dump(config))
    return path


async def test_a_token(tmp_path: Path):
    login = await log_in(write(tmp_path / "config", {"token": "secret"}))
    assert (login.server, login.namespace) == ("http://127.0.0.1:1", "default")
    assert await login.authorization() == "Bearer secret"


async def test_another_context_brings_its_namespace(tmp_path: Path):
    assert (await log_in(write(tmp_path / "config", {}), "y")).namespace == "team-y"


async def test_kubeconfig_from_the_environment_before_the_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write(tmp_path / "home/.kube/config", {"token": "default"})
    assert await (await log_in()).authorization() == "Bearer default"
    named = write(tmp_path / "named", {"token": "named"})
    monkeypatch.setenv("KUBECONFIG", f"{tmp_path / 'absent'}{os.pathsep}{named}")
    assert await (await log_in()).authorization() == "Bearer named"


@pytest.fixture
def pod(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The files and variables that a pod's ServiceAccount brings."""
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "fd00::1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "443")
    for name, text in {"token": "from-the-pod\n", "ca.crt": CERTIFICATE, "namespace": "moorage-system\n"}.items():
        (tmp_path / name).write_text(text)
    library = "kubernetes.aio.config.incluster_config"
    monkeypatch.setattr(f"{library}.SERVICE_TOKEN_FILENAME", str(tmp_path / "token"))
    monkeypatch.setattr(f"{library}.SERVICE_CERT_FILENAME", str(tmp_path / "ca.crt"))
    monkeypatch.setattr("moorage.kube.login._NAMESPACE_FILE", tmp_path / "namespace")
    # A token is good for no time at all, so that each request reads the file again instead of one a minute.
    clock = SimpleNamespace(datetime=datetime, timedelta=lambda **_: timedelta(0))
    monkeypatch.setattr(f"{library}.datetime", clock)
    return tmp_path


async def test_the_account_of_our_own_pod_whose_token_rotates(pod: Path):
    login = await log_in()
    assert (login.server, login.namespace) == ("https://[fd00::1]:443", "moorage-system")
    assert await login.authorization() == "bearer from-the-pod"
    (pod / "token").write_text("rotated")
    assert await login.authorization() == "bearer rotated"
    (pod / "token").write_text("")
    with pytest.raises(Unavailable, match="empty"):
        await login.authorization()


async def test_no_way_in_is_said_in_a_sentence():
    with pytest.raises(MoorageError, match="no way into a cluster by the account of this pod"):
        await log_in()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "Expected key"),
        ("clusters: []\ncurrent-context: x\ncontexts: []\nusers: []\n", "x"),
        ("{", "flow"),
        ("[]", ""),
    ],
)
async def test_a_file_that_is_no_kubeconfig_is_named(tmp_path: Path, text: str | None, words: str):
    path = tmp_path / "broken"
    if text is not None:
        path.write_text(text)
    with pytest.raises(MoorageError, match=f"broken: .*{words}"):
        await log_in(path)


async def test_a_context_that_does_not_exist_is_named(tmp_path: Path):
    with pytest.raises(MoorageError, match="nowhere"):
        await log_in(write(tmp_path / "config", {}), "nowhere")


async def test_https_without_a_user_section_is_an_error_not_a_traceback(tmp_path: Path):
    try:
        login = await log_in(write(tmp_path / "config", None, server="https://127.0.0.1:1"))
    except MoorageError:
        return
    assert await login.authorization() is None


def plugin(path: Path, body: str) -> dict[str, Any]:
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(path.stat().st_mode | stat.S_IEXEC)
    version = "client.authentication.k8s.io/v1"
    return {"exec": {"apiVersion": version, "command": str(path), "interactiveMode": "Never"}}


async def test_an_exec_plugin_gives_the_token(tmp_path: Path):
    status = {"token": "from-plugin"}
    answer = {"apiVersion": "client.authentication.k8s.io/v1", "kind": "ExecCredential", "status": status}
    login = await log_in(write(tmp_path / "config", plugin(tmp_path / "plugin", f"echo '{json.dumps(answer)}'")))
    assert await login.authorization() == "Bearer from-plugin"


async def test_an_exec_plugin_that_fails_does_not_make_us_nobody(tmp_path: Path):
    with pytest.raises(MoorageError, match=r"exec plugin .* gave no credentials"):
        await log_in(write(tmp_path / "config", plugin(tmp_path / "plugin", "exit 3")))


async def test_the_proxy_of_the_environment_and_its_exceptions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    config = write(tmp_path / "config", {}, server="https://api.example.org:6443")
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy.example.org:3128")
    assert (await log_in(config)).proxy == "http://proxy.example.org:3128"
    monkeypatch.setenv("NO_PROXY", ".example.org")
    assert (await log_in(config)).proxy is None
    named = write(tmp_path / "config", {}, server="https://api.example.org:6443", **{"proxy-url": "http://other:1"})
    assert (await log_in(named)).proxy == "http://other:1"


async def test_a_login_writes_nothing_into_a_persons_file(tmp_path: Path):
    path = write(tmp_path / "config", {"token": "secret"})
    before = path.read_bytes()
    await log_in(path)
    assert path.read_bytes() == before
