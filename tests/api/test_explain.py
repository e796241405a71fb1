"""`moorage explain` in a cluster of simulated GPU nodes: the operator's decision, seen with a person's own rights."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from moorage.cli import main
from moorage.control.operator import Operator
from tests.api.test_placement import FLEET, gpu_nodes
from tests.conftest import TestCluster
from tests.support.bed import Bed, condition, running_operator

pytestmark = pytest.mark.api

GPU = {"vendor": "Auto", "memoryPerGPUOverride": "40Gi"}


@pytest.fixture(scope="module")
def fleet(kwok_cluster: TestCluster) -> Iterator[TestCluster]:
    with gpu_nodes(kwok_cluster, FLEET):
        yield kwok_cluster


@pytest.fixture
async def bed(fleet: TestCluster) -> AsyncIterator[Bed]:
    async with Bed.made(fleet.kubeconfig) as made:
        await made.ready_download()
        yield made


@pytest.fixture
def operator(fleet: TestCluster) -> Iterator[Operator]:
    with running_operator(fleet.kubeconfig) as made:
        yield made


async def explained(bed: Bed, kubeconfig: Path, model: str, *more: str) -> Any:
    args = ["explain", model, "-n", bed.namespace, "--kubeconfig", str(kubeconfig), *more]
    done = await asyncio.to_thread(CliRunner().invoke, main, args)
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout) if "json" in more else done.stdout


async def test_it_says_what_the_operator_decided(bed: Bed, operator: Operator, fleet: TestCluster):
    for name in ("first", "second"):
        await bed.model(name, accelerator=GPU)
        await bed.until_condition(name, "Ready", "True")
    await bed.model("third", accelerator=GPU)
    model = await bed.until_condition("third", "Placed", "False", "NoGPUFree")
    found = await explained(bed, fleet.kubeconfig, "third", "-o", "json")
    assert found["decision"]["message"] == condition(model, "Placed")["message"] == found["operator"]["message"]
    verdicts = {n["node"]: n["verdict"] for n in found["nodes"]}
    assert verdicts == {"sim-8": "TooSmall", "sim-24": "TooSmall", "sim-80": "Taken", "sim-cpu": "NoGPU"}
    assert found["unseen"] == []
    text = await explained(bed, fleet.kubeconfig, "third")
    assert f"held by {bed.namespace}/first, {bed.namespace}/second" in text
    running = await explained(bed, fleet.kubeconfig, "first", "-o", "json")
    assert (running["runsOn"], running["decision"]["reason"]) == (["sim-80"], "Placed")


async def test_a_person_who_sees_one_namespace_hears_the_operators_words(
    bed: Bed, operator: Operator, fleet: TestCluster, tmp_path: Path
):
    await bed.model("huge", accelerator={"vendor": "Auto", "memoryPerGPUOverride": "100Gi"})
    await bed.until_condition("huge", "Placed", "False", "NoGPUFits")
    here = ("-n", bed.namespace)
    fleet.kubectl(*here, "create", "serviceaccount", "person")
    rules = ("--verb=get,list", "--resource=models.moorage.dev,modeldownloads.moorage.dev")
    fleet.kubectl(*here, "create", "role", "reader", *rules)
    fleet.kubectl(*here, "create", "rolebinding", "reader", "--role=reader", f"--serviceaccount={bed.namespace}:person")
    token = fleet.kubectl(*here, "create", "token", "person").stdout.strip()
    mine = yaml.safe_load(fleet.kubeconfig.read_text())
    mine["users"] = [{"name": user["name"], "user": {"token": token}} for user in mine["users"]]
    kubeconfig = tmp_path / "kubeconfig"
    kubeconfig.write_text(yaml.safe_dump(mine))
    text = await explained(bed, kubeconfig, "huge")
    assert "waits at Placed (NoGPUFits): needs 100.0Gi, largest GPU is 80Gi (sim-80)" in text
    assert "Not seen, because you may not list it: " in text
    assert "nodes" in text


async def test_a_model_that_is_not_there(bed: Bed, fleet: TestCluster):
    args = ["explain", "nobody", "-n", bed.namespace, "--kubeconfig", str(fleet.kubeconfig)]
    done = await asyncio.to_thread(CliRunner().invoke, main, args)
    assert (done.exit_code, done.stderr) == (3, f"error: there is no Model nobody in namespace {bed.namespace}\n")
