"""A Model for which there is no GPU memory, from end to end: the operator finds out, and the gateway tells clients."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientSession, ClientTimeout

from moorage.kube.resources import MODEL_ALIASES, MODELS
from tests.api.test_placement import gpu_nodes
from tests.conftest import TestCluster
from tests.process.gateway.support import CHAT, OK, RawEngine, always, chat
from tests.process.gateway.support import Bed as Gate
from tests.support.bed import Bed
from tests.support.eventually import eventually
from tests.support.reports import Reports

pytestmark = pytest.mark.api

SMALL = {"small": (24564, 1)}
LARGE = {"large": (81559, 1)}
PROMPT = 20.0
"""Seconds on a loaded machine, from the request to the refusal. Who is held waits 300 s."""


@pytest.fixture(scope="module")
def fleet(kwok_cluster: TestCluster) -> Iterator[TestCluster]:
    with gpu_nodes(kwok_cluster, SMALL):
        yield kwok_cluster


@pytest.fixture
async def bed(fleet: TestCluster) -> AsyncIterator[Bed]:
    async with Bed.made(fleet.kubeconfig) as made:
        await made.ready_download()
        yield made
        for alias in (await made.kube.list(MODEL_ALIASES, made.namespace))[0]:
            await made.kube.delete(MODEL_ALIASES, made.namespace, alias["metadata"]["name"])


@pytest.fixture
def reports(fleet: TestCluster, tmp_path: Path, bed: Bed) -> Reports:
    return Reports(fleet.kubeconfig, tmp_path, bed.namespace)


async def gpu_model(bed: Bed, name: str, need: str, **spec: Any) -> None:
    """A Model for one GPU of this test's nodes that nobody puts to sleep."""
    ours = {"key": "kubernetes.io/hostname", "operator": "In", "values": [*SMALL, *LARGE]}
    terms = {"nodeSelectorTerms": [{"matchExpressions": [ours]}]}
    affinity = {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": terms}}
    accelerator = {"vendor": "Nvidia", "count": 1, "memoryPerGPUOverride": need}
    spec = {"preemption": {"policy": "Never"}, "affinity": affinity, "accelerator": accelerator} | spec
    await bed.model(name, **spec)


async def known(gate: Gate, name: str) -> None:
    await eventually(lambda: name in gate.gateway.proxy.snapshot.routes, 60, f"{name} in the gateway's table")


async def refused(gate: Gate, name: str) -> str:
    """The sentence with which a request is refused, at once, because of the GPUs' memory."""
    began = time.monotonic()
    async with gate.client() as client:
        await client.post(chat(name))
        reply = await client.reply()
    assert time.monotonic() - began < PROMPT
    assert (reply.status, reply.error["code"]) == (503, "insufficient_gpu_memory"), reply.body
    assert reply.error["type"] == "server_error"
    assert int(reply.headers["retry-after"]) > 0
    return str(reply.error["message"])


async def answered(gate: Gate, name: str) -> None:
    """Ask until it is answered: the operator may not have seen yet that there is room, and then the server starts."""
    host, port = gate.gateway.address
    async with ClientSession(f"http://{host}:{port}", timeout=ClientTimeout(120)) as session, asyncio.timeout(180):
        while True:
            async with session.post(CHAT, json=chat(name)) as answer:
                if answer.status == 200:
                    return
                assert (answer.status, (await answer.json())["error"]["code"]) == (503, "insufficient_gpu_memory")
            await asyncio.sleep(0.2)


async def test_a_model_that_fits_no_gpu_is_refused_with_the_numbers_until_one_comes(
    bed: Bed, reports: Reports, fleet: TestCluster
):
    async with RawEngine(always(OK)) as engine, reports.gateway({"m": engine}) as gate:
        with reports.operator():
            await gpu_model(bed, "m", "40Gi")
            await known(gate, "m")
            why = "needs 40.0Gi, largest GPU is 24Gi"
            assert await refused(gate, "m") == f"The model `m` cannot be served now: {why}", "held until it was known"
            model = await bed.until_condition("m", "Placed", "False")
            assert model["status"]["summary"]["message"] == f"{why} (small)", "nodes are for who sees the cluster"
            await bed.create("ModelAlias", "chat", {"targets": [{"modelRef": {"name": "m"}}]})
            await known(gate, "chat")
            assert await refused(gate, "chat") == f"The model `chat` cannot be served now: {why}"
            assert gate.gateway.proxy.fleet.held == 0
            with gpu_nodes(fleet, LARGE):
                await answered(gate, "chat")
                assert engine.requests
                await bed.kube.delete(MODEL_ALIASES, bed.namespace, "chat")
                await bed.kube.delete(MODELS, bed.namespace, "m")


TAKEN = "needs 10.0Gi; the only GPU of 24Gi or more is taken"


async def test_a_model_whose_gpu_is_taken_is_refused_until_it_is_given_back(bed: Bed, reports: Reports):
    async with RawEngine(always(OK)) as engine, reports.gateway({"late": engine}) as gate:
        with reports.operator():
            await gpu_model(bed, "early", "10Gi")
            await bed.until_condition("early", "Ready", "True")
            await gpu_model(bed, "late", "10Gi")
            await known(gate, "late")
            assert await refused(gate, "late") == f"The model `late` cannot be served now: {TAKEN}", "not by whom"
            await bed.kube.delete(MODELS, bed.namespace, "early")
            await answered(gate, "late")


async def test_a_sleeper_whose_gpu_was_taken_meanwhile_is_refused_until_it_is_given_back(bed: Bed, reports: Reports):
    with reports.operator():
        async with RawEngine(always(OK)) as engine, reports.gateway({"sleeper": engine}) as gate:
            await gpu_model(bed, "sleeper", "10Gi", scaling={"scaleToZeroAfter": "10s"})
            await known(gate, "sleeper")
            await answered(gate, "sleeper")
            await bed.until_condition("sleeper", "Active", "False", "ScaledToZero", timeout=120)
            await gpu_model(bed, "taker", "10Gi")
            await bed.until_condition("taker", "Ready", "True")
            assert await refused(gate, "sleeper") == f"The model `sleeper` cannot be served now: {TAKEN}"
            await bed.kube.delete(MODELS, bed.namespace, "taker")
            await answered(gate, "sleeper")
