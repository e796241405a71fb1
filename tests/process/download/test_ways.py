"""The ways to a source: certificates, proxies, hosts, and how connections are used."""

import time

import pytest

from e2e.hub import HubServer
from tests.process.download.proxy import Proxy
from tests.process.download.support import Downloader, make_repo, self_signed
from tests.support.eventually import SLACK

MB = 1_000_000
FILES = {"a.gguf": b"x" * 1000, "b.json": b"{}"}


@pytest.fixture
def root(tmp_path):
    make_repo(tmp_path / "root", "acme/m", FILES, private=True, allow=["alice"], tokens={"hf_good": "alice"})
    return tmp_path / "root"


@pytest.fixture
def secure(root, tmp_path):
    """A hub that speaks TLS with a certificate nobody knows."""
    with HubServer(root, tls=self_signed(tmp_path)) as hub:
        yield hub


TOKEN = {"HF_TOKEN": "hf_good"}


def test_an_unknown_certificate_is_refused_at_once(secure, tmp_path):
    done = Downloader(secure, tmp_path / "models").run("acme/m", env=TOKEN)
    assert (done.reason, done.code) == ("CertificateError", 26), done
    assert done.seconds < SLACK
    assert not secure.requests()


def test_a_given_authority_is_trusted(secure, tmp_path):
    download = Downloader(secure, tmp_path / "models")
    done = download.run("acme/m", "--ca-file", str(tmp_path / "cert.pem"), env=TOKEN)
    assert done.code == 0, done
    download.check(FILES)
    assert download.run("acme/m", "--ca-file", str(tmp_path / "none.pem")).reason == "CertificateError"


def test_a_certificate_for_another_host_is_refused(secure, tmp_path):
    command = Downloader(secure, tmp_path / "models").command("acme/m", "--ca-file", str(tmp_path / "cert.pem"))
    command[command.index("--endpoint") + 1] = f"https://localhost:{secure.port}"
    done = Downloader(secure, tmp_path / "models").run("", command=command, env=TOKEN)
    assert done.reason == "CertificateError", done


def test_an_https_proxy_tunnels(secure, tmp_path):
    with Proxy() as proxy:
        env = {**TOKEN, "HTTPS_PROXY": f"http://user:p%40ss@{proxy.address}"}
        download = Downloader(secure, tmp_path / "models")
        done = download.run("acme/m", "--ca-file", str(tmp_path / "cert.pem"), env=env)
        assert done.code == 0, done
        download.check(FILES)
        assert set(proxy.seen) == {f"CONNECT 127.0.0.1:{p}" for p in (secure.port, secure.cdn_port)}
        assert set(proxy.credentials) == {"user:p@ss"}
        assert "p%40ss" not in done.stderr


def test_an_http_proxy_and_its_exceptions(root, tmp_path):
    with HubServer(root) as hub, Proxy() as proxy:
        env = {**TOKEN, "HTTP_PROXY": f"http://{proxy.address}"}
        assert Downloader(hub, tmp_path / "models").run("acme/m", env=env).code == 0
        assert set(proxy.seen) == {f"GET 127.0.0.1:{p}" for p in (hub.port, hub.cdn_port)}
        proxy.seen.clear()
        env["NO_PROXY"] = "127.0.0.1"
        assert Downloader(hub, tmp_path / "other").run("acme/m", env=env).code == 0
        assert not proxy.seen


def test_a_proxy_that_is_gone(root, tmp_path):
    with HubServer(root) as hub:
        env = {"HTTP_PROXY": "http://127.0.0.1:9"}
        done = Downloader(hub, tmp_path / "models").run("acme/m", "--retries", "1", env=env)
    assert done.reason == "HubUnreachable", done


def test_loopback_is_refused_unless_allowed(root, tmp_path):
    with HubServer(root) as hub:
        download = Downloader(hub, tmp_path / "models")
        for host in ("127.0.0.1", "localhost"):
            command = [c for c in download.command("acme/m") if c != "--allow-loopback"]
            command[command.index("--endpoint") + 1] = f"http://{host}:{hub.port}"
            done = download.run("", command=command)
            assert (done.reason, done.code) == ("HostNotAllowed", 19), done
        assert not hub.requests()


def test_only_allowed_hosts_even_by_redirect(root, tmp_path):
    with HubServer(root) as hub:
        download = Downloader(hub, tmp_path / "models")
        assert download.run("acme/m", "--allow-host", "*.example.org").reason == "HostNotAllowed"
        assert download.run("acme/m", "--deny-network", "127.0.0.0/8").reason == "HostNotAllowed"
        hub.rule("status", "/resolve/", status=302, headers={"Location": "http://localhost:1/x"}, count=None)
        done = download.run("acme/m", "--allow-host", "127.0.0.1", env=TOKEN)
        assert done.reason == "HostNotAllowed", done
        assert "localhost" in done.result["message"]


def test_headers_for_a_plain_url_stay_at_its_origin(hub, download, tmp_path):
    (tmp_path / "headers").write_text("X-Api-Key: secret\nAuthorization: Bearer other\n")
    sha256 = download.run("acme/one", "--manifest-only").result["files"][0]["sha256"]
    hub.log.clear()
    url = f"{hub.url}/acme/one/resolve/main/model.gguf"
    options = ["--url", url, "--sha256", sha256, "--file-name", "x.gguf", "--header-file", str(tmp_path / "headers")]
    done = download.run("", command=[*download.command("")[:7], *options])
    # The hub knows no such token: the header came where it belongs. The CDN would have answered 400 to it.
    assert (done.reason, done.code) == ("Unauthorized", 13), done
    (tmp_path / "headers").write_text("no colon")
    assert download.run("", command=[*download.command("")[:7], *options]).reason == "Unauthorized"


def test_the_first_request_of_a_file_goes_alone(hub, download):
    hub.rule("slow", "model.gguf", server="cdn", seconds=1.0)
    hub.connection_rate = 20 * MB
    assert download.run("acme/one").code == 0
    asked = sorted(r["time"] for r in hub.requests("model.gguf", server="cdn"))
    assert asked[1] - asked[0] > 0.9
    assert len(asked) >= 8
    assert len(hub.requests("model.gguf", server="hub")) == 1
    # Each connection is used again for the next piece.
    assert len({r["connection"] for r in hub.requests("model.gguf", server="cdn")}) <= 8


def test_eight_connections_add_up(hub, download):
    hub.connection_rate = 1 * MB
    started = time.monotonic()
    assert download.run("acme/one").code == 0
    assert time.monotonic() - started < 30  # one connection needs forty seconds


def test_the_bandwidth_limit_holds(hub, download):
    started = time.monotonic()
    assert download.run("acme/one", "--bandwidth-limit", str(20 * MB)).code == 0
    assert 1.6 < time.monotonic() - started < SLACK


def test_a_connection_that_the_server_closed_while_idle_is_no_failure(root, tmp_path):
    files = {f"{i}.txt": b"%d" % i for i in range(20)}
    make_repo(root, "acme/n", files)
    with HubServer(root) as hub:
        # Every fifth answer is the last of its connection, which does not say so.
        for skip in range(4, 20, 5):
            hub.rule("cut", "/resolve/", skip=skip)
        download = Downloader(hub, tmp_path / "models")
        done = download.run("acme/n", "--connections", "1")
        assert done.code == 0, done
        download.check(files)
        assert done.result["retries"] == 0
