"""Names, hosts and URLs from strangers."""

import posixpath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moorage.errors import SourceError
from moorage.sources import HostPolicy, Repository, check_name, next_page, origin, same_origin
from moorage.sources.urls import without_query


@pytest.mark.parametrize("path", ["a.gguf", "x/y z/ü.gguf", "..a/b..", "a[1] (2).bin", ".gitattributes", "x/.moorage"])
def test_good_names(path):
    check_name(path)


@pytest.mark.parametrize(
    "path",
    [
        "",
        ".",
        "..",
        "../a",
        "a/../b",
        "/etc/passwd",
        "a//b",
        "a/",
        "./a",
        "a\\b",
        "C:x",
        "c:/x",
        "a\0b",
        "a\nb",
        "x" * 256,
        "ä" * 128,
        "/".join(["x" * 200] * 12),
        ".moorage/state",
        ".moorage",
        "\udcff",
    ],
)
def test_unsafe_names(path):
    with pytest.raises(SourceError) as caught:
        check_name(path)
    assert caught.value.reason == "UnsafeName"
    caught.value.message.encode()


@given(st.text("ab./\\:\0\n~é", max_size=12))
def test_a_name_that_passes_stays_below_its_folder(path):
    try:
        check_name(path)
    except SourceError:
        return
    assert posixpath.normpath(posixpath.join("/stage", path)).startswith("/stage/")


@pytest.mark.parametrize(
    "address",
    [
        "169.254.169.254",
        "169.254.1.1",
        "fe80::1",
        "fd00:ec2::254",
        "fd00:ec2::23",
        "fd20:ce::254",
        "100.100.100.200",
        "::ffff:169.254.169.254",
        "127.0.0.1",
        "127.9.9.9",
        "::1",
        "::ffff:127.0.0.1",
        "0.0.0.0",
        "::",
        "224.0.0.1",
        "255.255.255.255",
        "64:ff9b::a9fe:a9fe",
        "2002:a9fe:a9fe::",
        "10.96.0.1",
        "fe80::1%eth0",
        "168.63.129.16",
    ],
)
def test_forbidden_addresses(address):
    policy = HostPolicy(denied_networks=("10.96.0.1/32",))
    with pytest.raises(SourceError) as caught:
        policy.check_addresses("evil.example", ["93.184.216.34", address])
    assert caught.value.reason == "HostNotAllowed"
    assert not caught.value.retryable


def test_allowed_addresses():
    HostPolicy().check_addresses("mirror", ["10.0.0.7", "192.168.1.1", "8.8.8.8", "2606:4700::1", "fd12::1"])
    HostPolicy(allow_loopback=True).check_addresses("local", ["127.0.0.1", "::1"])
    with pytest.raises(SourceError):
        HostPolicy(allow_loopback=True).check_addresses("x", ["169.254.169.254"])


def test_host_list():
    policy = HostPolicy(allowed_hosts=("huggingface.co", "*.hf.co"))
    policy.check_host("cdn-lfs.hf.co")
    policy.check_host("HuggingFace.co")
    for host in ("evil.example", "hf.co.evil.example", "10.0.0.1"):
        with pytest.raises(SourceError):
            policy.check_host(host)
    with pytest.raises(SourceError):
        HostPolicy().check_host("[::1]")


@pytest.mark.parametrize("host", ["metadata.google.internal", "Metadata.Google.Internal.", "metadata", "metadata.goog",
                                  "instance-data", "instance-data.ec2.internal"])  # fmt: skip
def test_names_of_metadata_services_are_refused_although_a_proxy_resolves_them(host):
    with pytest.raises(SourceError) as caught:
        HostPolicy(allowed_hosts=("*",)).check_host(host)
    assert "metadata" in str(caught.value)
    HostPolicy().check_host("metadata.example.com")


def test_urls_quote_everything():
    repo = Repository("org/name", "refs/pr/1", "https://hub.example/base/")
    assert repo.revision_url() == "https://hub.example/base/api/models/org/name/revision/refs%2Fpr%2F1"
    assert repo.file_url("c" * 40, "a b/ü#?.gguf") == (
        f"https://hub.example/base/org/name/resolve/{'c' * 40}/a%20b/%C3%BC%23%3F.gguf"
    )


@pytest.mark.parametrize("repo", ["", "a/b/c", "../x", "a b", "a/..", "/a", "a/", "-x", "a/b?c"])
def test_odd_repositories(repo):
    with pytest.raises(SourceError):
        Repository(repo)


@pytest.mark.parametrize("endpoint", ["ftp://x", "hub.example", "https://", "https://user:pw@hub.example"])
def test_odd_endpoints(endpoint):
    with pytest.raises(SourceError) as caught:
        Repository("a/b", endpoint=endpoint)
    assert "pw" not in caught.value.message


def test_origins():
    assert origin("HTTPS://Hub.Example/x") == ("https", "hub.example", 443)
    assert same_origin("http://a:80/x", "http://a/y")
    assert not same_origin("http://a:80/", "http://a:81/")
    assert not same_origin("http://a/", "https://a/")
    with pytest.raises(SourceError):
        origin("file:///etc/passwd")
    with pytest.raises(SourceError):
        origin("http://a:notaport/")


def test_next_page_stays_home():
    url = "https://hub.example/api/models/a/b/tree/x?recursive=true"
    link = '<https://hub.example/api/models/a/b/tree/x?cursor=1>; rel="next"'
    assert next_page(url, link) == "https://hub.example/api/models/a/b/tree/x?cursor=1"
    assert next_page(url, None) is None
    assert next_page(url, '<https://hub.example/z>; rel="prev"') is None
    mirrored = '<https://huggingface.co/api/models/a/b/tree/x?recursive=true&cursor=2>; rel="next"'
    assert next_page(url, mirrored) == "https://hub.example/api/models/a/b/tree/x?recursive=true&cursor=2"


def test_messages_hide_signatures_and_passwords():
    assert without_query("https://u:p@cdn.example/x?signature=abc#f") == "https://cdn.example/x"
