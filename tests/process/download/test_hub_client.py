"""The operator's hub client against the local hub."""

import asyncio
import time

import pytest

from e2e.hub import HubServer
from moorage.errors import SourceError
from moorage.hub import HubClient
from moorage.sources import Access, HostPolicy, Repository
from tests.process.download.proxy import Proxy
from tests.process.download.support import make_repo, self_signed
from tests.support.eventually import SLACK

LOCAL = HostPolicy(allow_loopback=True)


@pytest.fixture
def hub(tmp_path):
    make_repo(tmp_path, "acme/model", {"config.json": b"{}", "model.gguf": bytes(range(256)) * 100})
    make_repo(
        tmp_path,
        "acme/private",
        {"a.gguf": b"x" * 10},
        private=True,
        allow=["alice"],
        tokens={"hf_good": "alice", "hf_other": "bob"},
    )
    make_repo(tmp_path, "acme/gated", {"a.gguf": b"x" * 10}, gated="manual", granted=["alice"])
    with HubServer(tmp_path, page_size=1) as server:
        yield server


@pytest.fixture
async def client():
    async with HubClient(policy=LOCAL, timeout=2.0) as made:
        yield made


async def fails(awaitable):
    with pytest.raises(SourceError) as caught:
        await awaitable
    return caught.value


async def test_commit_tree_over_pages_and_ranges(hub, client):
    source = Repository("acme/model", endpoint=hub.url)
    commit = await client.resolve(source)
    files = await client.tree(source, commit)
    assert [(f.path, f.size, f.sha256 is None) for f in files] == [
        ("config.json", 2, True),
        ("model.gguf", 25600, False),
    ]
    url = source.file_url(commit, "model.gguf")
    assert await client.read_range(url, 5, 10) == bytes(range(5, 15))
    assert len(await client.read_range(url, 25000, 10_000)) == 600
    probed = await client.probe(url)
    assert (probed.size, probed.etag) == (25600, files[1].sha256)


async def test_token_goes_to_the_hub_and_not_to_the_cdn(hub, client):
    source = Repository("acme/private", endpoint=hub.url)
    access = Access(token="hf_good")
    commit = await client.resolve(source, access)
    assert await client.read_range(source.file_url(commit, "a.gguf"), 0, 5, access) == b"xxxxx"
    assert {(r["server"], r["authorization"]) for r in hub.requests("private")} == {("hub", True), ("cdn", False)}
    assert "hf_good" not in repr(access)


@pytest.mark.parametrize(
    ("repo", "revision", "token", "reason"),
    [
        ("acme/nothing", "main", None, "RepoNotFoundOrPrivate"),
        ("acme/private", "main", None, "RepoNotFoundOrPrivate"),
        ("acme/private", "main", "hf_other", "RepoNotFoundOrPrivate"),
        ("acme/private", "main", "hf_wrong", "Unauthorized"),
        ("acme/model", "v9", None, "RevisionNotFound"),
    ],
)
async def test_refusals(hub, repo, revision, token, reason):
    async with HubClient(policy=LOCAL) as client:
        error = await fails(client.resolve(Repository(repo, revision, hub.url), Access(token=token)))
    assert (error.reason, error.retryable) == (reason, False)


async def test_gated_files(hub, client):
    source = Repository("acme/gated", endpoint=hub.url)
    commit = await client.resolve(source)
    error = await fails(client.read_range(source.file_url(commit, "a.gguf"), 0, 5))
    assert error.reason == "GatedAccessDenied"


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ({"kind": "hang"}, "Timeout"),
        ({"kind": "rst"}, "Network"),
        ({"kind": "cut"}, "Network"),
        ({"kind": "status", "status": 503}, "ServerError"),
        ({"kind": "status", "status": 429, "headers": {"Retry-After": "9"}}, "RateLimited"),
        ({"kind": "status", "status": 200, "body": "<html>"}, "NotAHub"),
        ({"kind": "status", "status": 200, "body": "[]"}, "NotAHub"),
        ({"kind": "status", "status": 404, "headers": {"Content-Type": "text/html"}}, "NotAHub"),
        (
            {"kind": "status", "status": 302, "headers": {"Location": "/api/models/acme/model/revision/main"}},
            "UnexpectedContent",
        ),
        ({"kind": "status", "status": 302, "headers": {"Location": "http://169.254.169.254/latest"}}, "HostNotAllowed"),
        ({"kind": "status", "status": 302, "headers": {"Location": "file:///etc/passwd"}}, "RequestRefused"),
        ({"kind": "status", "status": 302}, "UnexpectedContent"),
    ],
)
async def test_faults_have_reasons(hub, client, fault, reason):
    hub.rule(path="/revision/", count=None, **fault)
    started = time.monotonic()
    error = await fails(client.resolve(Repository("acme/model", endpoint=hub.url)))
    assert error.reason == reason
    assert time.monotonic() - started < SLACK
    assert error.retry_after == (9 if reason == "RateLimited" else None)


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ({"kind": "norange"}, "UnexpectedContent"),
        ({"kind": "html"}, "UnexpectedContent"),
        ({"kind": "wrongrange"}, "UnexpectedContent"),
        ({"kind": "stall", "after": 10}, "Timeout"),
        ({"kind": "cut", "after": 10}, "Network"),
        ({"kind": "status", "status": 416}, "SizeMismatch"),
    ],
)
async def test_only_the_asked_range_is_taken(hub, client, fault, reason):
    source = Repository("acme/model", endpoint=hub.url)
    commit = await client.resolve(source)
    hub.rule(path="model.gguf", server="cdn", **fault)
    assert (await fails(client.read_range(source.file_url(commit, "model.gguf"), 0, 1000))).reason == reason


async def test_a_size_that_no_status_holds_is_refused(hub, client):
    size = {"Content-Range": f"bytes 0-0/{10**19 - 1}"}
    hub.rule(path="/resolve/", count=None, kind="status", status=206, headers=size, body="x")
    error = await fails(client.probe(f"{hub.url}/acme/model/resolve/main/model.gguf"))
    assert (error.reason, "would have 9,999,999,999,999,999,999 bytes" in error.message) == ("UnexpectedContent", True)


async def test_the_list_of_files_ends(hub, client):
    source = Repository("acme/model", endpoint=hub.url)
    commit = await client.resolve(source)
    link = {"Link": f'<{source.tree_url(commit)}>; rel="next"'}
    hub.rule("status", "/tree/", status=200, body="[]", headers=link, count=None)
    assert (await fails(client.tree(source, commit))).reason == "NotAHub"


async def test_loopback_is_refused_unless_allowed(hub):
    async with HubClient(timeout=2) as strict:
        for host in ("127.0.0.1", "localhost"):
            source = Repository("acme/model", endpoint=f"http://{host}:{hub.port}")
            assert (await fails(strict.resolve(source))).reason == "HostNotAllowed"
    assert not hub.requests()


async def test_a_proxy_and_its_exceptions(hub, client, monkeypatch):
    source = Repository("acme/model", endpoint=hub.url)
    with Proxy() as proxy:
        monkeypatch.setenv("HTTP_PROXY", f"http://user:p%40ss@{proxy.address}")
        for straight in ("127.0.0.0/8", "127.0.0.1", "localhost, 127.0.0.1:" + str(hub.port)):
            monkeypatch.setenv("NO_PROXY", straight)
            await client.resolve(source)
        assert not proxy.seen
        monkeypatch.setenv("NO_PROXY", "10.0.0.0/8")
        await client.resolve(source)
        assert proxy.seen == [f"GET 127.0.0.1:{hub.port}"]
        assert proxy.credentials == ["user:p@ss"]
        monkeypatch.setenv("HTTP_PROXY", "socks5://127.0.0.1:1")
        assert "only http:// proxies" in (await fails(client.resolve(source))).message


async def test_unreachable(client):
    assert (await fails(client.resolve(Repository("a/b", endpoint="http://127.0.0.1:9")))).reason == "HubUnreachable"
    named = Repository("a/b", endpoint="http://no-such-host.invalid")
    assert (await fails(client.resolve(named))).reason == "HubUnreachable"


async def test_certificates(tmp_path):
    make_repo(tmp_path / "root", "acme/model", {"config.json": b"{}"})
    certificate, key = self_signed(tmp_path)
    with HubServer(tmp_path / "root", tls=(certificate, key)) as hub:
        async with HubClient(policy=LOCAL, timeout=30) as client:
            source = Repository("acme/model", endpoint=hub.url)
            assert (await fails(client.resolve(source))).reason == "CertificateError"
            trusted = Access(ca=(tmp_path / "cert.pem").read_text())
            assert len(await client.resolve(source, trusted)) == 40
            assert (await fails(client.resolve(source, Access(ca="nonsense")))).reason == "CertificateError"


async def test_many_at_once(hub, client):
    source = Repository("acme/model", endpoint=hub.url)
    commits = await asyncio.gather(*(client.resolve(source) for _ in range(40)))
    assert len(set(commits)) == 1
