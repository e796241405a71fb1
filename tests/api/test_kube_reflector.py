"""The mirror against a real API server whose watches are cut, silenced and expired by a proxy."""

import asyncio
import os
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from moorage.kube.backoff import Backoff
from moorage.kube.client import KubeClient
from moorage.kube.reflector import Key, Reflector
from moorage.kube.resources import CONFIG_MAPS, NAMESPACES
from tests.support.apiproxy import FOREVER, ApiProxy
from tests.support.eventually import eventually

pytestmark = pytest.mark.api

Seen = dict[Key, str]


@pytest.fixture
async def proxy(api_cluster: Any, tmp_path: Path) -> AsyncIterator[ApiProxy]:
    async with ApiProxy(api_cluster.kubeconfig, tmp_path) as proxy:
        yield proxy


@pytest.fixture
async def direct(api_cluster: Any) -> AsyncIterator[KubeClient]:
    """A client past the proxy, for what the test itself changes."""
    async with await KubeClient.connect(api_cluster.kubeconfig) as client:
        yield client


@pytest.fixture
async def namespace(direct: KubeClient) -> AsyncIterator[str]:
    name = f"kube-{uuid.uuid4().hex[:8]}"
    await direct.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
    yield name
    await direct.delete(NAMESPACES, None, name)


def config_map(namespace: str, name: str, value: str = "") -> dict[str, Any]:
    meta = {"name": name, "namespace": namespace, "labels": {"test": "kube"}}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta, "data": {"value": value}}


def value_of(obj: dict[str, Any]) -> str:
    return str(obj["data"]["value"])


class Mirror:
    """A running reflector of the labelled ConfigMaps of one namespace; `told` is what its changes add up to."""

    def __init__(self, client: KubeClient, namespace: str, **options: Any) -> None:
        self.told: Seen = {}
        self.namespace = namespace
        self.reflector: Reflector[str] = Reflector(
            client,
            CONFIG_MAPS,
            project=value_of,
            on_change=self._note,
            namespace=namespace,
            label_selector="test=kube",
            backoff=Backoff(first=0.05, longest=0.5),
            **options,
        )

    def _note(self, key: Key, old: str | None, new: str | None) -> None:
        assert self.told.get(key) == old
        if new is None:
            del self.told[key]
        else:
            self.told[key] = new

    @property
    def names(self) -> set[str]:
        assert self.told == self.reflector.items
        return {name for _, name in self.told}


@asynccontextmanager
async def mirror(proxy: ApiProxy, namespace: str, **options: Any) -> AsyncIterator[Mirror]:
    async with await KubeClient.connect(proxy.kubeconfig) as client:
        running = Mirror(client, namespace, **options)
        task = asyncio.create_task(running.reflector.run())
        try:
            await running.reflector.wait_synced(60)
            await eventually(lambda: proxy.open_watches(namespace) == 1)
            yield running
        finally:
            task.cancel()
            await asyncio.wait([task])
    await eventually(lambda: proxy.open_watches(namespace) == 0, what="the cancelled mirror's watch is closed")


async def test_follows_what_happens(proxy: ApiProxy, direct: KubeClient, namespace: str):
    await direct.create(config_map(namespace, "before", "1"))
    async with mirror(proxy, namespace, page=1) as seen:
        assert seen.names == {"before"}
        await direct.create(config_map(namespace, "after", "1"))
        await direct.apply(config_map(namespace, "before", "2"), force=True)
        await eventually(lambda: seen.told == {(namespace, "before"): "2", (namespace, "after"): "1"})
        await direct.delete(CONFIG_MAPS, namespace, "before")
        await eventually(lambda: seen.names == {"after"})


async def test_an_object_that_loses_its_label_vanishes(proxy: ApiProxy, direct: KubeClient, namespace: str):
    await direct.create(config_map(namespace, "a"))
    async with mirror(proxy, namespace) as seen:
        await direct.merge_patch(CONFIG_MAPS, namespace, "a", {"metadata": {"labels": {"test": None}}})
        await eventually(lambda: seen.names == set())


async def test_410_lists_again_and_drops_what_vanished(proxy: ApiProxy, direct: KubeClient, namespace: str):
    for name in ("stays", "vanishes", "changes"):
        await direct.create(config_map(namespace, name, "1"))
    async with mirror(proxy, namespace) as seen:
        # The mirror learns nothing of what happens now, and may not resume either.
        assert proxy.mute_watches(namespace) == 1
        await direct.delete(CONFIG_MAPS, namespace, "vanishes")
        await direct.apply(config_map(namespace, "changes", "2"), force=True)
        await direct.create(config_map(namespace, "appears", "1"))
        proxy.fail(410, path=f"{namespace}.*watch=true")
        proxy.drop_watches(namespace)
        await eventually(lambda: seen.names == {"stays", "changes", "appears"})
        assert seen.told[namespace, "changes"] == "2"
        assert seen.reflector.lists == 2


async def test_410_in_the_middle_of_a_watch(proxy: ApiProxy, direct: KubeClient, namespace: str):
    await direct.create(config_map(namespace, "a"))
    async with mirror(proxy, namespace) as seen:
        proxy.expire_watches(namespace)
        await eventually(lambda: seen.reflector.lists == 2)
        await direct.create(config_map(namespace, "b"))
        await eventually(lambda: seen.names == {"a", "b"})


async def test_a_silent_watch_is_given_up_and_nothing_is_lost(proxy: ApiProxy, direct: KubeClient, namespace: str):
    await direct.create(config_map(namespace, "a"))
    async with mirror(proxy, namespace, silence_seconds=1.0) as seen:
        assert proxy.mute_watches(namespace) == 1
        await direct.create(config_map(namespace, "b"))
        await direct.delete(CONFIG_MAPS, namespace, "a")
        await eventually(lambda: seen.names == {"b"})
        assert proxy.count(path="watch=") > 1, "the first one passed nothing on"
        assert seen.reflector.lists == 1, "it resumed, it did not list again"


async def test_a_watch_that_is_dropped_again_and_again_loses_nothing(
    proxy: ApiProxy, direct: KubeClient, namespace: str
):
    async with mirror(proxy, namespace) as seen:
        for number in range(60):
            await direct.create(config_map(namespace, f"c-{number}", str(number)))
            if number % 3 == 2:
                await direct.delete(CONFIG_MAPS, namespace, f"c-{number - 1}")
            if number % 10 == 5:
                proxy.drop_watches(namespace)
        expected = {f"c-{n}" for n in range(60)} - {f"c-{n}" for n in range(60) if n % 3 == 1}
        await eventually(lambda: seen.names == expected)
        assert seen.reflector.lists == 1


async def test_a_server_that_is_down_for_a_while(proxy: ApiProxy, direct: KubeClient, namespace: str):
    async with mirror(proxy, namespace) as seen:
        await proxy.go_down()
        await direct.create(config_map(namespace, "meanwhile"))
        await eventually(lambda: seen.reflector.last_error != "")
        await proxy.come_up()
        await eventually(lambda: seen.names == {"meanwhile"})
        assert seen.reflector.lists == 1
        assert seen.reflector.last_error == ""


@pytest.mark.parametrize("status", [429, 500, 503])
async def test_a_list_that_is_refused_for_a_while(proxy: ApiProxy, direct: KubeClient, namespace: str, status: int):
    await direct.create(config_map(namespace, "a"))
    proxy.fail(status, method="GET", path=namespace, times=3)
    async with mirror(proxy, namespace) as seen:
        assert seen.names == {"a"}


async def test_no_request_is_sent_at_rest(proxy: ApiProxy, direct: KubeClient, namespace: str):
    async with mirror(proxy, namespace) as seen:
        for number in range(20):
            await direct.create(config_map(namespace, f"c-{number}"))
        await eventually(lambda: len(seen.names) == 20)
        assert proxy.count(path=namespace) == 2, "one list, one watch"


async def test_last_activity_tells_a_live_mirror_from_a_dead_one(proxy: ApiProxy, direct: KubeClient, namespace: str):
    async with mirror(proxy, namespace) as seen:
        proxy.fail(503, path=namespace, times=FOREVER)
        proxy.drop_watches(namespace)
        await eventually(lambda: "503" in seen.reflector.last_error)
        dead_since = seen.reflector.last_activity
        proxy.clear()
        await eventually(lambda: seen.reflector.last_activity > dead_since)


SCRIPT = """
import asyncio, gc, os, sys, time
from pathlib import Path
from moorage.kube.client import KubeClient
from moorage.kube.reflector import Reflector
from moorage.kube.resources import CONFIG_MAPS

def peak_mib():
    line = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024

async def main(kubeconfig, namespace):
    async with await KubeClient.connect(Path(kubeconfig)) as client:
        await client.list(CONFIG_MAPS, "default")
        gc.collect()
        before, cpu = peak_mib(), time.process_time()
        mirror = Reflector(client, CONFIG_MAPS, namespace=namespace, project=lambda o: o["metadata"]["uid"],
                           on_change=lambda *_: None)
        task = asyncio.create_task(mirror.run())
        await mirror.wait_synced(120)
        print(len(mirror.items), peak_mib() - before, time.process_time() - cpu)
        task.cancel()

asyncio.run(main(*sys.argv[1:]))
"""


async def fill(client: KubeClient, namespace: str, number: int, size: int) -> None:
    numbers = iter(range(number))

    async def work() -> None:
        for n in numbers:
            await client.create(config_map(namespace, f"c-{n}", "v" * size))

    await asyncio.gather(*(work() for _ in range(16)))


async def test_ten_thousand_objects_are_listed_in_flat_memory(
    api_cluster: Any, direct: KubeClient, namespace: str, record_property: Callable[[str, object], None]
):
    await fill(direct, namespace, 10_000, 2_000)
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", SCRIPT, str(api_cluster.kubeconfig), namespace,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": "operator"},
    )  # fmt: skip
    output, _ = await process.communicate()
    items, grown_mib, cpu_seconds = output.split()
    record_property("rss_grown_mib", float(grown_mib))
    record_property("cpu_seconds", float(cpu_seconds))
    print(f"10,000 ConfigMaps of 2 kB: {float(grown_mib):.1f} MiB more at the peak, {float(cpu_seconds):.2f} CPU-s")
    assert int(items) >= 10_000
    assert float(grown_mib) < 20, "the objects alone are 20 MB of JSON, and some 50 MiB as dicts"
