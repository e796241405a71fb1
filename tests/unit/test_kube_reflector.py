"""The mirror against a scripted client: what it makes of lists, watches and their ends."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from moorage.errors import ApiError, Forbidden, Gone, NotFound, Throttled, Unavailable
from moorage.kube.backoff import Backoff
from moorage.kube.reflector import Key, Reflector
from moorage.kube.resources import CONFIG_MAPS
from moorage.kube.watch import WatchEvent
from tests.support.eventually import eventually

Change = tuple[Key, Any, Any]


def item(name: str, version: int, value: str = "") -> dict[str, Any]:
    return {"metadata": {"name": name, "namespace": "a", "resourceVersion": str(version)}, "value": value or name}


class ScriptedClient:
    """Plays lists (pages, or an error) and watches (batches, then an error or the end) in order; then stays silent."""

    def __init__(self, lists: list[Any], watches: list[list[Any]]) -> None:
        self.lists = lists
        self.watches = watches
        self.listed = 0
        self.watched_from: list[str] = []

    async def pages(self, *_: Any, **__: Any) -> AsyncGenerator[tuple[list[Any], str], None]:
        self.listed += 1
        script = self.lists.pop(0) if self.lists else []
        for page in script:
            if isinstance(page, BaseException):
                raise page
            yield list(page), "100"
        if not script:
            yield [], "100"

    @asynccontextmanager
    async def watch(self, *_: Any, resource_version: str, **__: Any) -> AsyncIterator[AsyncIterator[list[WatchEvent]]]:
        self.watched_from.append(resource_version)
        yield self._batches()

    async def _batches(self) -> AsyncIterator[list[WatchEvent]]:
        if not self.watches:
            await asyncio.Event().wait()
        for step in self.watches.pop(0):
            if isinstance(step, BaseException):
                raise step
            yield step


class Mirror:
    """A running reflector and what it told."""

    def __init__(self, client: ScriptedClient, **options: Any) -> None:
        self.client = client
        self.changes: list[Change] = []
        options = {"project": lambda o: o["value"], "on_change": self._note, "backoff": quick()} | options
        self.reflector: Reflector[str] = Reflector(client, CONFIG_MAPS, **options)  # type: ignore[arg-type]

    def _note(self, key: Key, old: Any, new: Any) -> None:
        self.changes.append((key, old, new))

    async def __aenter__(self) -> "Mirror":
        self._task = asyncio.create_task(self.reflector.run())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await self._task


def quick() -> Backoff:
    return Backoff(first=0.001, longest=0.01)


def events(*pairs: tuple[str, dict[str, Any]]) -> list[WatchEvent]:
    return [WatchEvent(kind, obj) for kind, obj in pairs]


async def test_list_then_watch_from_the_lists_version():
    watch = [events(("ADDED", item("c", 101)), ("MODIFIED", item("a", 102, "a2"))), events(("DELETED", item("b", 103)))]
    async with Mirror(ScriptedClient([[[item("a", 1)], [item("b", 2)]]], [watch])) as mirror:
        await mirror.reflector.wait_synced(5)
        await eventually(lambda: len(mirror.changes) == 5)
    assert mirror.client.watched_from[0] == "100"
    assert mirror.reflector.items == {("a", "a"): "a2", ("a", "c"): "c"}
    assert mirror.changes == [
        (("a", "a"), None, "a"),
        (("a", "b"), None, "b"),
        (("a", "c"), None, "c"),
        (("a", "a"), "a", "a2"),
        (("a", "b"), "b", None),
    ]


async def test_equal_projections_are_not_told():
    watch = [events(("MODIFIED", item("a", 101, "same")), ("MODIFIED", item("a", 102, "other")))]
    async with Mirror(ScriptedClient([[[item("a", 1, "same")]]], [watch])) as mirror:
        await eventually(lambda: len(mirror.changes) == 2)
    assert mirror.changes[1] == (("a", "a"), "same", "other")


async def test_what_projects_to_none_is_not_kept():
    def project(obj: dict[str, Any]) -> str | None:
        return None if obj["value"] == "dull" else obj["value"]

    watch = [events(("MODIFIED", item("a", 101, "dull")), ("ADDED", item("b", 102, "dull")))]
    async with Mirror(ScriptedClient([[[item("a", 1, "bright")]]], [watch]), project=project) as mirror:
        await eventually(lambda: len(mirror.changes) == 2)
        assert mirror.reflector.items == {}
    assert mirror.changes[1] == (("a", "a"), "bright", None)


async def test_a_watch_that_ends_is_resumed_from_the_last_version_bookmarks_included():
    bookmark = {"metadata": {"resourceVersion": "150"}}
    first = [events(("ADDED", item("a", 101))), events(("BOOKMARK", bookmark))]
    second = [events(("ADDED", item("b", 160))), Unavailable("cut")]
    async with Mirror(ScriptedClient([[[]]], [first, second])) as mirror:
        await eventually(lambda: len(mirror.client.watched_from) == 3)
    assert mirror.client.watched_from == ["100", "150", "160"]
    assert mirror.client.listed == 1


@pytest.mark.parametrize("gone", [Gone("too old", status=410)])
async def test_a_forgotten_version_lists_again_and_drops_what_vanished(gone: ApiError):
    client = ScriptedClient([[[item("a", 1), item("b", 2)]], [[item("b", 2), item("c", 50)]]], [[gone]])
    async with Mirror(client) as mirror:
        await eventually(lambda: len(mirror.client.watched_from) == 2)
    assert mirror.reflector.items == {("a", "b"): "b", ("a", "c"): "c"}
    assert mirror.changes[2:] == [(("a", "c"), None, "c"), (("a", "a"), "a", None)]
    assert mirror.reflector.lists == 2


async def test_a_server_that_comes_back_without_its_past_is_listed_at_once():
    """It forgets versions when it restarts; how long it was away no longer counts."""
    long_away = Backoff(first=0.01, longest=600.0, failures=20)
    client = ScriptedClient([[[item("a", 1)]], [[item("a", 1)]]], [[Gone("too old", status=410)]])
    async with Mirror(client, backoff=long_away) as mirror:
        await eventually(lambda: mirror.reflector.lists == 2)


async def test_a_server_that_forgets_again_and_again_is_asked_less_and_less():
    forgets = [[Gone("too old", status=410)] for _ in range(50)]
    client = ScriptedClient([[[]] for _ in range(50)], forgets)
    async with Mirror(client, backoff=Backoff(first=0.02, longest=600.0)) as mirror:
        started = asyncio.get_running_loop().time()
        await eventually(lambda: mirror.reflector.lists == 5)
        assert asyncio.get_running_loop().time() - started >= (1 + 2 + 4 + 8) * 0.01


async def test_a_list_that_breaks_in_the_middle_drops_nothing_and_is_no_sync():
    client = ScriptedClient([[[item("a", 1)], Unavailable("cut")], [[item("a", 1)], [item("b", 2)]]], [])
    synced_after_first = []

    def project(obj: dict[str, Any]) -> str:
        synced_after_first.append(mirror.reflector.synced)
        return str(obj["value"])

    async with Mirror(client, project=project) as mirror:
        await mirror.reflector.wait_synced(5)
    assert not any(synced_after_first)
    assert [change[0][1] for change in mirror.changes] == ["a", "b"]


async def test_server_errors_one_after_the_other_make_it_list_again():
    refused = [[Unavailable("Too large resource version", status=504)] for _ in range(4)]
    async with Mirror(ScriptedClient([[[item("a", 1)]], [[item("a", 1)]]], refused)) as mirror:
        await eventually(lambda: mirror.reflector.lists == 2)


async def test_a_broken_connection_does_not_make_it_list_again():
    cut = [[Unavailable("connection refused")] for _ in range(8)]
    async with Mirror(ScriptedClient([[[item("a", 1)]]], cut)) as mirror:
        await eventually(lambda: len(mirror.client.watched_from) == 9)
    assert mirror.client.listed == 1


async def test_a_watch_that_ends_at_once_is_not_reopened_in_a_busy_loop():
    slow = Backoff(first=0.05, longest=0.05)
    async with Mirror(ScriptedClient([[[]]], [[] for _ in range(50)]), backoff=slow) as mirror:
        started = asyncio.get_running_loop().time()
        await eventually(lambda: len(mirror.client.watched_from) == 6)
        assert asyncio.get_running_loop().time() - started >= 5 * 0.025


async def test_a_resource_that_may_be_missing_is_empty_where_the_server_does_not_serve_it():
    client = ScriptedClient([[NotFound("no such resource", status=404)]], [])
    async with Mirror(client, optional=True) as mirror:
        await mirror.reflector.wait_synced(5)
        assert (mirror.reflector.items, client.listed, mirror.reflector.last_error) == ({}, 1, "")


async def test_a_resource_that_must_be_there_is_asked_for_until_it_is():
    client = ScriptedClient([[NotFound("no such resource", status=404)], [[item("x", 1)]]], [])
    async with Mirror(client) as mirror:
        await mirror.reflector.wait_synced(5)
        assert mirror.reflector.items == {("a", "x"): "x"}


async def test_an_observer_that_raises_stops_nothing(caplog: pytest.LogCaptureFixture):
    def on_change(key: Key, *_: Any) -> None:
        seen.append(key)
        raise KeyError(key)

    seen: list[Key] = []
    watch = [events(("ADDED", item("b", 101)))]
    async with Mirror(ScriptedClient([[[item("a", 1)]]], [watch]), on_change=on_change) as mirror:
        await eventually(lambda: len(seen) == 2)
        assert len(mirror.reflector.items) == 2
    assert "a change was not taken in" in caplog.text


async def test_one_odd_object_stops_nothing(caplog: pytest.LogCaptureFixture):
    odd = {"metadata": {"name": "odd", "namespace": "a", "resourceVersion": "3"}}
    async with Mirror(ScriptedClient([[[odd, item("a", 1)]]], [])) as mirror:
        await mirror.reflector.wait_synced(5)
        assert list(mirror.reflector.items) == [("a", "a")]
    assert "cannot be read" in caplog.text


async def test_a_defect_is_told_and_mended_by_a_new_list(caplog: pytest.LogCaptureFixture):
    nonsense = events(("ADDED", {"no": "metadata"}))
    client = ScriptedClient([[[item("a", 1)]], [[item("b", 2)]]], [[nonsense]])
    async with Mirror(client) as mirror:
        await eventually(lambda: list(mirror.reflector.items) == [("a", "b")])
    assert "a defect in the mirror" in caplog.text


async def test_missing_rights_are_told_by_wait_synced():
    client = ScriptedClient([[Forbidden("cannot list configmaps", status=403)] for _ in range(1000)], [])
    async with Mirror(client) as mirror:
        with pytest.raises(Unavailable, match=r"configmaps could not be listed within 0\.1 s: cannot list configmaps"):
            await mirror.reflector.wait_synced(0.1)
        assert not mirror.reflector.synced


async def test_the_servers_retry_after_is_honoured():
    client = ScriptedClient([[Throttled("slow down", status=429, retry_after=0.3)], [[item("a", 1)]]], [])
    async with Mirror(client) as mirror:
        started = asyncio.get_running_loop().time()
        await mirror.reflector.wait_synced(5)
        assert asyncio.get_running_loop().time() - started >= 0.3


async def test_recovery_clears_the_error_and_the_backoff():
    backoff = quick()
    watch = [events(("ADDED", item("b", 101)))]
    client = ScriptedClient([[Unavailable("down")], [[item("a", 1)]]], [watch])
    async with Mirror(client, backoff=backoff) as mirror:
        await eventually(lambda: len(mirror.reflector.items) == 2)
        assert (mirror.reflector.last_error, backoff.failures) == ("", 0)


def test_backoff_doubles_to_its_limit_with_jitter():
    backoff = Backoff(first=0.5, longest=30.0)
    delays = [backoff.next() for _ in range(40)]
    for number, delay in enumerate(delays):
        whole = min(30.0, 0.5 * 2**number)
        assert whole / 2 <= delay <= whole
    assert len(set(delays[10:])) > 20
    assert backoff.next(retry_after=100) == 100
    backoff.reset()
    assert backoff.next() <= 0.5
