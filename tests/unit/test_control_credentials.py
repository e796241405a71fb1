"""A Secret that changes ends a refusal within one period, whoever waits for it; nothing is asked while nobody does."""

import asyncio
from collections import Counter
from typing import Any

from moorage.control.credentials import CredentialPoller
from moorage.control.store import DOWNLOAD, MODEL, Key
from moorage.errors import Unavailable
from moorage.kube.resources import Resource
from moorage.planning.types import Credentials
from tests.support.eventually import eventually


class Versions:
    """The one question that the poller asks of an API server."""

    def __init__(self) -> None:
        self.of: dict[str, str] = {}
        self.asked: Counter[str] = Counter()
        self.away = False

    async def version(self, resource: Resource, _namespace: str, name: str) -> str:
        self.asked[f"{resource.kind}/{name}"] += 1
        if self.away:
            raise Unavailable("the server is away")
        return self.of.get(name, "")


ONE, TWO = Key(MODEL, "n", "one"), Key(DOWNLOAD, "n", "two")


async def test_everybody_who_waits_hears_of_a_change_and_a_server_that_is_away_is_none():
    server, heard = Versions(), list[Key]()
    client: Any = server
    poller = CredentialPoller(client, heard.append, period=0.01)
    poller.follow(ONE, Credentials(("token",)))
    poller.follow(TWO, Credentials(("token",), ("ca",)))
    await eventually(lambda: server.asked["Secret/token"] >= 3)
    assert not heard
    server.away = True
    before = server.asked["Secret/token"]
    await eventually(lambda: server.asked["Secret/token"] >= before + 2)
    assert not heard
    server.away, server.of = False, {"token": "7"}
    await eventually(lambda: set(heard) == {ONE, TWO})
    assert poller.has_changed(ONE)
    poller.follow(ONE, Credentials(("token",)))
    assert poller.has_changed(ONE), "asked again for the same, it still knows"
    heard.clear()
    poller.forget(ONE)
    server.of["ca"] = "9"
    await eventually(lambda: heard == [TWO])
    assert not poller.has_changed(ONE)
    await poller.close()


async def test_one_question_serves_a_thousand_and_none_is_asked_for_nobody():
    server = Versions()
    client: Any = server
    poller = CredentialPoller(client, lambda _key: None, period=0.02)
    keys = [Key(MODEL, "n", str(i)) for i in range(1000)]
    for key in keys:
        poller.follow(key, Credentials(("token",)))
    await eventually(lambda: server.asked["Secret/token"] >= 3)
    assert server.asked["Secret/token"] < 1000
    for key in keys:
        poller.forget(key)
    await asyncio.sleep(0.05)
    rest = server.asked["Secret/token"]
    await asyncio.sleep(0.1)
    assert server.asked["Secret/token"] == rest
    await poller.close()
