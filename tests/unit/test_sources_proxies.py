"""Which requests go through a proxy."""

import pytest

from moorage.errors import SourceError
from moorage.sources.proxies import bypassed, choose_proxy


@pytest.mark.parametrize(
    ("rules", "host", "port", "straight"),
    [
        ("", "hub.example.org", 443, False),
        ("*", "hub.example.org", 443, True),
        ("example.org", "hub.example.org", 443, True),
        (".example.org", "hub.example.org", 443, True),
        ("*.example.org", "hub.example.org", 443, True),
        ("example.org", "example.org", 443, True),
        ("example.org", "badexample.org", 443, False),
        ("EXAMPLE.org", "Hub.Example.ORG.", 443, True),
        ("hub.example.org:443", "hub.example.org", 443, True),
        ("hub.example.org:443", "hub.example.org", 80, False),
        ("other, .svc, localhost", "hub.models.svc", 80, True),
        ("other .svc", "hub.models.svc", 80, True),
        ("10.0.0.0/8", "10.1.2.3", 80, True),
        ("10.0.0.0/8", "11.1.2.3", 80, False),
        ("10.1.2.3", "10.1.2.3", 80, True),
        ("10.1.2.3:80", "10.1.2.3", 80, True),
        ("10.1.2.3:81", "10.1.2.3", 80, False),
        ("10.0.0.0/8", "hub.example.org", 80, False),
        ("::1", "::1", 80, True),
        ("[::1]:80", "::1", 80, True),
        ("[::1]:81", "::1", 80, False),
        ("fd00::/8", "fd00::7", 80, True),
        ("fd00::/8", "10.1.2.3", 80, False),
        (".", "hub.example.org", 80, False),
    ],
)
def test_no_proxy(rules, host, port, straight):
    assert bypassed(rules, host, port) is straight


def test_a_proxy_by_scheme_or_for_all():
    proxies = {"https": "http://u:p%40@proxy:8080", "all": "other", "no": ".svc"}
    found = choose_proxy(proxies, "https", "hub.example.org", 443)
    assert found is not None
    assert (found.host, found.port, found.url) == ("proxy", 8080, "http://proxy:8080")
    assert found.headers == {"Proxy-Authorization": "Basic dTpwQA=="}
    assert "p@" not in repr(found)
    plain = choose_proxy(proxies, "http", "hub.example.org", 80)
    assert plain is not None
    assert (plain.host, plain.port, dict(plain.headers)) == ("other", 3128, {})
    assert choose_proxy(proxies, "http", "hub.svc", 80) is None
    assert choose_proxy({}, "http", "hub.example.org", 80) is None


@pytest.mark.parametrize("named", ["socks5://p:1", "https://p:1", "http://"])
def test_other_kinds_are_refused_for_good(named):
    with pytest.raises(SourceError, match="only http:// proxies") as caught:
        choose_proxy({"https": named}, "https", "hub.example.org", 443)
    assert not caught.value.retryable
