import asyncio
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest

from moorage.errors import Conflict, Forbidden, NotFound, Unavailable
from moorage.kube.backoff import Backoff
from moorage.kube.events import EventRecorder, object_reference
from tests.support.eventually import eventually

MODEL = {
    "apiVersion": "moorage.dev/v1alpha1",
    "kind": "Model",
    "metadata": {"name": "m", "namespace": "team-a", "uid": "u-1", "resourceVersion": "7", "labels": {"a": "b"}},
    "spec": {},
}
NOON = datetime(2026, 1, 1, 12, 0, 0, tzinfo=UTC)


class ScriptedClient:
    """Remembers what is written; the next writes raise what `errors` holds; `hold` keeps writes back."""

    def __init__(self) -> None:
        self.created: list[dict[str, Any]] = []
        self.patched: list[tuple[str, str, dict[str, Any]]] = []
        self.errors: list[Exception] = []
        self.hold: asyncio.Event | None = None

    async def _turn(self) -> None:
        if self.hold is not None:
            await self.hold.wait()
        await asyncio.sleep(0)
        if self.errors:
            raise self.errors.pop(0)

    async def create(self, manifest: dict[str, Any]) -> dict[str, Any]:
        await self._turn()
        self.created.append(manifest)
        return manifest

    async def merge_patch(self, _: object, namespace: str, name: str, patch: dict[str, Any]) -> dict[str, Any]:
        await self._turn()
        self.patched.append((namespace, name, patch))
        return patch


@pytest.fixture
def client() -> ScriptedClient:
    return ScriptedClient()


@pytest.fixture
def make(client: ScriptedClient) -> Callable[..., EventRecorder]:
    def make(**options: Any) -> EventRecorder:
        quick = {"now": lambda: NOON, "backoff": lambda: Backoff(first=0.001), "instance": "pod-1"}
        return EventRecorder(client, **(quick | options))  # type: ignore[arg-type]

    return make


async def test_an_event_as_kubectl_describe_reads_it(client: ScriptedClient, make: Callable[..., EventRecorder]):
    async with asyncio.timeout(30), make() as recorder:  # closing waits no longer than there is something to send
        recorder.record(MODEL, "Normal", "Downloaded", "all is here")
    (event,) = client.created
    name = event["metadata"].pop("name")
    assert name.startswith("m.")
    assert event == {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"namespace": "team-a"},
        "involvedObject": {
            "apiVersion": "moorage.dev/v1alpha1",
            "kind": "Model",
            "namespace": "team-a",
            "name": "m",
            "uid": "u-1",
            "resourceVersion": "7",
        },
        "type": "Normal",
        "reason": "Downloaded",
        "message": "all is here",
        "count": 1,
        "firstTimestamp": "2026-01-01T12:00:00Z",
        "lastTimestamp": "2026-01-01T12:00:00Z",
        "source": {"component": "moorage"},
        "reportingComponent": "moorage.dev/moorage",
        "reportingInstance": "pod-1",
    }


async def test_the_same_again_raises_the_count(client: ScriptedClient, make: Callable[..., EventRecorder]):
    async with make() as recorder:
        for number in range(1, 4):
            recorder.record(MODEL, "Normal", "Loading", "wait")
            await eventually(lambda: len(client.created) + len(client.patched) == number)  # noqa: B023
    name = client.created[0]["metadata"]["name"]
    assert client.patched == [
        ("team-a", name, {"count": 2, "lastTimestamp": "2026-01-01T12:00:00Z"}),
        ("team-a", name, {"count": 3, "lastTimestamp": "2026-01-01T12:00:00Z"}),
    ]


async def test_many_of_the_same_that_wait_are_one_request(client: ScriptedClient, make: Callable[..., EventRecorder]):
    async with make() as recorder:
        for _ in range(50):
            recorder.record(MODEL, "Normal", "Loading", "wait")
    assert [event["count"] for event in client.created] == [50]


@pytest.mark.parametrize(
    "other",
    [
        ({**MODEL, "metadata": {**MODEL["metadata"], "uid": "u-2"}}, "Normal", "Loading", "wait"),  # type: ignore[dict-item]
        (MODEL, "Warning", "Loading", "wait"),
        (MODEL, "Normal", "Loaded", "wait"),
        (MODEL, "Normal", "Loading", "wait more"),
    ],
)
async def test_what_differs_is_told_apart(client: ScriptedClient, make: Callable[..., EventRecorder], other: Any):
    async with make() as recorder:
        recorder.record(MODEL, "Normal", "Loading", "wait")
        recorder.record(*other)
    assert len(client.created) == 2


async def test_after_the_window_it_is_a_new_event(client: ScriptedClient, make: Callable[..., EventRecorder]):
    async with make(window=0.0) as recorder:
        for number in range(1, 3):
            recorder.record(MODEL, "Normal", "Loading", "wait")
            await eventually(lambda: len(client.created) == number)  # noqa: B023


async def test_an_event_that_was_deleted_is_made_anew(client: ScriptedClient, make: Callable[..., EventRecorder]):
    async with make() as recorder:
        recorder.record(MODEL, "Normal", "Loading", "wait")
        await eventually(lambda: client.created)
        client.errors.append(NotFound("gone", status=404))
        recorder.record(MODEL, "Normal", "Loading", "wait")
        await eventually(lambda: len(client.created) == 2)
    assert client.created[0]["metadata"]["name"] != client.created[1]["metadata"]["name"]


async def test_trouble_is_tried_again_under_the_same_name(client: ScriptedClient, make: Callable[..., EventRecorder]):
    # The second try meets what the first, whose answer was lost, has made.
    client.errors += [Unavailable("lost"), Conflict("already exists", status=409)]
    async with make() as recorder:
        recorder.record(MODEL, "Normal", "Loading", "wait")
        await eventually(lambda: not client.errors)
        recorder.record(MODEL, "Normal", "Loading", "wait")
    assert recorder.dropped == 0
    assert not client.created
    assert client.patched[0][2]["count"] == 2


@pytest.mark.parametrize("error", [Forbidden("no", status=403), ValueError("a defect")])
async def test_what_cannot_be_told_is_dropped_and_the_next_one_told(
    client: ScriptedClient, make: Callable[..., EventRecorder], error: Exception
):
    client.errors.append(error)
    async with make() as recorder:
        recorder.record(MODEL, "Normal", "Loading", "one")
        recorder.record(MODEL, "Normal", "Loading", "two")
    assert [event["message"] for event in client.created] == ["two"]
    assert recorder.dropped == 1


async def test_a_server_that_stays_away_costs_the_event_not_the_recorder(
    client: ScriptedClient, make: Callable[..., EventRecorder]
):
    client.errors += [Unavailable("down")] * 4
    async with make() as recorder:
        recorder.record(MODEL, "Normal", "Loading", "one")
        recorder.record(MODEL, "Normal", "Loading", "two")
    assert [event["message"] for event in client.created] == ["two"]
    assert recorder.dropped == 1


async def test_a_full_queue_drops_and_counts_but_never_waits(
    client: ScriptedClient, make: Callable[..., EventRecorder]
):
    client.hold = asyncio.Event()
    async with make(queue_size=10) as recorder:
        for number in range(30):
            recorder.record(MODEL, "Normal", "Loading", f"message {number}")
        assert recorder.dropped == 20
        client.hold.set()
    assert [event["message"] for event in client.created] == [f"message {number}" for number in range(10)]


async def test_close_gives_up_after_its_time(client: ScriptedClient, make: Callable[..., EventRecorder]):
    client.hold = asyncio.Event()
    recorder = make()
    recorder.start()
    for number in range(3):
        recorder.record(MODEL, "Normal", "Loading", f"message {number}")
    await recorder.close(timeout=0.05)
    assert not client.created
    assert recorder.dropped == 3


async def test_a_cluster_scoped_object_is_told_about_in_default(
    client: ScriptedClient, make: Callable[..., EventRecorder]
):
    async with make() as recorder:
        recorder.record({"apiVersion": "v1", "kind": "Node", "name": "n", "uid": "u"}, "Warning", "Lost", "gone")
    assert client.created[0]["metadata"]["namespace"] == "default"


async def test_long_names_and_messages_are_cut(client: ScriptedClient, make: Callable[..., EventRecorder]):
    async with make() as recorder:
        recorder.record({**MODEL, "metadata": {"name": "n" * 253, "namespace": "a"}}, "Normal", "Long", "x" * 5000)
    assert len(client.created[0]["metadata"]["name"]) == 253
    assert len(client.created[0]["message"]) == 1024


def test_a_reference_comes_back_as_it_is():
    reference = object_reference(MODEL)
    assert object_reference(reference) == reference
