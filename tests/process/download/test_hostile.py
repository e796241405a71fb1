"""Servers that mean harm or have lost their minds: a typed reason in time, nothing leaked, nothing grown."""

import os
import socket
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest

from e2e.hub import HubServer
from moorage.download.run import Run
from moorage.download.settings import Settings
from moorage.download.source import HubSource
from moorage.download.wire import Wire
from moorage.errors import SourceError
from moorage.sources import Access, HostPolicy, Repository, Selection
from tests.process.download.proxy import Proxy
from tests.process.download.rawserver import RawServer, asked, content_range, send
from tests.process.download.support import Downloader, make_repo
from tests.support.eventually import SLACK

QUICK = ("--retries", "2", "--request-timeout", "1.5", "--stall-timeout", "1.5")
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


def drip_in_a_chunk_head(server, sock, head):
    sock.sendall(CHUNKED + b"1;")
    server.drip(sock, b"x")


def drip_in_the_body(server, sock, head):
    start, end = asked(head)
    sock.sendall(f"HTTP/1.1 206 P\r\nContent-Length: {end - start}\r\n{content_range(server, head)}\r\n\r\n".encode())
    server.drip(sock, b"x")


def drip_in_an_error(server, sock, head):
    sock.sendall(b"HTTP/1.1 404 Not Found\r\nContent-Length: 10000\r\n\r\n")
    server.drip(sock, b"x")


def continue_for_ever(server, sock, head):
    while not server.stopping.is_set():
        sock.sendall(b"HTTP/1.1 100 Continue\r\n\r\n" * 10)
        time.sleep(0.01)


def a_long_header(server, sock, head):
    sock.sendall(b"HTTP/1.1 200 OK\r\nX: " + b"x" * 1_000_000 + b"\r\n\r\n")


def many_headers(server, sock, head):
    sock.sendall(b"HTTP/1.1 200 OK\r\n" + b"X: x\r\n" * 10_000 + b"\r\n")


def headers_without_end(server, sock, head):
    sock.sendall(b"HTTP/1.1 200 OK\r\n")
    server.drip(sock, b"X: x\r\n", every=0.05)


def gzipped(server, sock, head):
    send(sock, server.data, "206 P", ["Content-Encoding: gzip", content_range(server, head)])


def number_too_long(server, sock, head):
    send(sock, server.data, "206 P", [f"Content-Range: bytes 0-{'9' * 5000}/{'9' * 5000}"])


def nowhere(server, sock, head):
    send(sock, b"", "302 Found", ["Location: http://[nowhere"])


def other_scheme(server, sock, head):
    send(sock, b"", "302 Found", ["Location: file:///etc/passwd"])


def deep(server, sock, head):
    send(sock, b"[" * 200_000)


def crowded(server, sock, head):
    send(sock, b"[" + b"{}," * 5_000_000 + b"{}]")


def oversized(server, sock, head):
    sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 999999999999\r\n\r\n")
    server.drip(sock, b" " * 1_000_000, every=0.001)


def not_http(server, sock, head):
    sock.sendall(b"SSH-2.0-OpenSSH_9.2\r\n")


HOSTILE = {
    # what, where it strikes: reason
    (drip_in_a_chunk_head, "/tree/"): "Timeout",
    (drip_in_a_chunk_head, "/resolve/"): "Stalled",
    (drip_in_the_body, "/resolve/"): "Stalled",
    (drip_in_an_error, "/resolve/"): "FileNotFound",
    (drip_in_an_error, "/tree/"): "NotAHub",
    (continue_for_ever, "/revision/"): "Timeout",
    (continue_for_ever, "/resolve/"): "Timeout",
    (a_long_header, "/revision/"): "Network",
    (many_headers, "/resolve/"): "Network",
    (headers_without_end, "/tree/"): "Timeout",
    (gzipped, "/resolve/"): "UnexpectedContent",
    (number_too_long, "/resolve/"): "UnexpectedContent",
    (nowhere, "/resolve/"): "UnexpectedContent",
    (nowhere, "/revision/"): "UnexpectedContent",
    (other_scheme, "/resolve/"): "RequestRefused",
    (deep, "/tree/"): "NotAHub",
    (crowded, "/tree/"): "NotAHub",
    (oversized, "/tree/"): "UnexpectedContent",
    (not_http, "/revision/"): "Network",
}


@pytest.mark.parametrize(("strike", "where"), HOSTILE, ids=[f"{f.__name__} {p.strip('/')}" for f, p in HOSTILE])
def test_hostile_server(strike, where, tmp_path):
    with RawServer() as server:
        server.answers[where] = lambda sock, head: strike(server, sock, head)
        download = Downloader(server, tmp_path / "models")
        done = download.run("a/m", *QUICK)
    assert done.reason == HOSTILE[strike, where], done
    assert done.seconds < 15 + SLACK
    assert not download.published()


def test_an_address_of_the_new_kind(tmp_path):
    with RawServer(host="::1") as server:
        download = Downloader(server, tmp_path / "models")
        done = download.run("a/m", env={"HTTP_PROXY": "http://127.0.0.1:9", "NO_PROXY": "10.0.0.0/8,::1"})
        assert done.code == 0, done
        download.check({"m.gguf": server.data})
        assert f"host: {server.url.removeprefix('http://')}" in server.heads[0].lower()


def test_kept_connections_that_have_all_gone_are_no_failure():
    """A server that ends every connection after one answer and does not say so: whatever is kept is stale."""
    wire = Wire(threading.Event(), policy=HostPolicy(allow_loopback=True))
    with RawServer() as server:
        url = f"{server.url}/a/m/resolve/main/m.gguf"

        def ask():
            return wire.get(url, {"Range": "bytes=0-999"})

        for answer in [ask(), ask(), ask()]:
            with answer:
                assert answer.read(1000) == server.data
        with ask() as answer:
            assert answer.read(1000) == server.data
        assert len(server.heads) == 4


@pytest.mark.parametrize("token", ["hf_good\n", " hf_good\r\n"])
def test_a_token_with_a_line_break_at_its_end_is_the_token(tmp_path, token):
    """As `kubectl create secret --from-file` makes them."""
    make_repo(tmp_path / "root", "a/m", {"m.gguf": b"1"}, private=True, allow=["al"], tokens={"hf_good": "al"})
    with HubServer(tmp_path / "root") as hub:
        done = Downloader(hub, tmp_path / "models").run("a/m", env={"HF_TOKEN": token})
    assert done.code == 0, done


@pytest.mark.parametrize("token", ["hf_se\ncret", "hf_se€cret", "hf_se\x01cret"])
def test_a_token_that_cannot_be_sent_is_not_shown_either(tmp_path, token):
    with RawServer() as server:
        done = Downloader(server, tmp_path / "models").run("a/m", env={"HF_TOKEN": token})
    assert (done.reason, done.code) == ("Unauthorized", 13), done
    assert "Secret" in done.result["message"]
    assert "cret" not in (done.stderr + str(done.result)).replace("Secret", "")
    assert not server.heads


def test_a_server_that_ends_each_connection_and_says_so(tmp_path):
    """Then the parser has let go of the socket before the body is read; it must be read and watched all the same."""

    def closing(sock, head):
        body = server.data[slice(*asked(head))]
        send(sock, body, "206 P", ["Connection: close", content_range(server, head)])

    with RawServer(os.urandom(20 << 20)) as server:
        server.answers["/resolve/"] = closing
        download = Downloader(server, tmp_path / "models")
        done = download.run("a/m")
        assert done.code == 0, done
        assert done.result["retries"] == 0
        download.check({"m.gguf": server.data})


def test_names_that_a_terminal_would_obey_are_shown_as_text(tmp_path):
    lies = {"a.gguf": {"path": "\x1b[31mred\ud800.bin"}}
    make_repo(tmp_path / "root", "acme/m", {"a.gguf": b"1"}, lies=lies)
    with HubServer(tmp_path / "root") as hub:
        done = Downloader(hub, tmp_path / "models").run("acme/m", "--include", "*.gguf")
    assert (done.reason, done.code) == ("NoFilesMatched", 16), done
    assert "\\x1b[31mred\\ud800.bin" in done.result["message"]
    assert "\x1b" not in done.stderr


@pytest.mark.parametrize("where", ["walk.Checksums.update", "saver.Saver.save", "volume.Volume.keep"])
def test_a_defect_in_any_thread_ends_the_run(hub, tmp_path, monkeypatch, where):
    def broken(*_):
        raise ValueError("nobody thought of this")

    monkeypatch.setattr(f"moorage.download.{where}", broken)
    hub.throttle.rate = 20_000_000
    source = HubSource(Repository("acme/one", endpoint=hub.url), Selection(), Access())
    run = Run(Settings(tmp_path / "models", policy=HostPolicy(allow_loopback=True)), source)
    with pytest.raises(SourceError, match="nobody thought of this") as caught:
        run.go()
    assert caught.value.reason == "InternalError"


def test_a_server_that_talks_while_nobody_asks(tmp_path):
    """Bytes behind the end of an answer must not be taken for the next answer's."""

    def generous(sock, head):
        start, end = asked(head)
        body = b"y" * (end - start)
        lines = (
            f"HTTP/1.1 206 P\r\nContent-Length: {end - start}\r\nContent-Range: bytes {start}-{end - 1}/1000\r\n\r\n"
        )
        sock.sendall(lines.encode() + body + b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nbad")
        time.sleep(1)

    with RawServer(b"y" * 1000, {"/resolve/": generous}) as server:
        download = Downloader(server, tmp_path / "models")
        assert download.run("a/m").code == 0
        download.check({"m.gguf": server.data})


def test_a_proxy_that_wants_a_name(tmp_path):
    make_repo(tmp_path / "root", "acme/m", {"a.gguf": b"x"})
    with HubServer(tmp_path / "root") as hub, Proxy() as proxy:
        env = {"HTTP_PROXY": f"http://user:p%40ss@{proxy.address}"}
        assert Downloader(hub, tmp_path / "models").run("acme/m", env=env).code == 0
        assert set(proxy.credentials) == {"user:p@ss"}


@pytest.mark.parametrize("kind", ["socks5", "https"])
def test_a_proxy_of_another_kind_is_said_at_once(tmp_path, kind):
    with RawServer() as server:
        env = {"HTTP_PROXY": f"{kind}://127.0.0.1:1080"}
        done = Downloader(server, tmp_path / "models").run("a/m", env=env)
    assert done.reason == "HubUnreachable", done
    assert "only http:// proxies" in done.result["message"]
    assert done.seconds < SLACK


def test_a_proxy_that_never_opens_the_tunnel(tmp_path):
    with RawServer() as server:
        server.answers = {"": lambda sock, _: (sock.sendall(b"HTTP/1.1 200 "), server.drip(sock, b"x"))[0]}
        env = {"HTTPS_PROXY": server.url}
        download = Downloader(server, tmp_path / "models")
        command = download.command("a/m", *QUICK)
        command[command.index("--endpoint") + 1] = "https://hub.example.org"
        done = download.run("", command=command, env=env)
    assert done.reason == "HubUnreachable", done
    assert done.seconds < 10 + SLACK


def test_the_status_port_is_taken(hub, download):
    with socket.socket(socket.AF_INET6) as other:
        other.bind(("::", 0))
        other.listen()
        done = download.run("acme/one", "--status-port", str(other.getsockname()[1]))
    assert done.code == 2
    assert "cannot listen on port" in done.stderr


def test_thousands_of_hosts_leave_no_connections_behind(tmp_path):
    """Every file's link leads to another name of the same machine; kept connections must not add up."""
    files = {f"{i}.txt": b"%d" % i for i in range(250)}
    make_repo(tmp_path / "root", "acme/n", files)
    with HubServer(tmp_path / "root", rescan=3600) as hub, HubServer(hub.store, host="0.0.0.0") as other:
        for number, name in enumerate(files):
            where = f"http://127.0.0.{number + 1}:{other.port}/acme/n/resolve/main/{name}"
            hub.rule("status", f"/{name}$", status=302, headers={"Location": where}, count=None)
        download = Downloader(hub, tmp_path / "models")
        process = download.start("acme/n", "--connections", "4")
        open_files, most = Path(f"/proc/{process.pid}/fd"), 0
        while process.poll() is None:
            with suppress(OSError):
                most = max(most, len(list(open_files.iterdir())))
            time.sleep(0.02)
        done = download.wait(process)
    assert done.code == 0, done
    assert len(other.requests("/resolve/")) == 250
    assert 40 < most < 64 + 40
