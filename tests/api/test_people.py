"""The commands for people on a real API server, with the operator at work: as a person types them, with exit codes."""

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from moorage import names
from moorage.control.operator import Operator
from moorage.kube.resources import MODEL_ALIASES, MODELS
from tests.conftest import TestCluster
from tests.support.bed import Bed, running_operator

pytestmark = pytest.mark.api


@dataclass
class Ended:
    code: int
    out: str
    err: str

    @property
    def result(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.out)
        return found


class Person:
    """Somebody with a kubeconfig and a shell."""

    def __init__(self, kubeconfig: Path, bed: Bed) -> None:
        self._kubeconfig, self._bed = kubeconfig, bed

    async def types(self, *words: str) -> Ended:
        command = [sys.executable, "-m", "moorage", *words, "-n", self._bed.namespace]
        pipe = asyncio.subprocess.PIPE
        child = await asyncio.create_subprocess_exec(
            *command, "--kubeconfig", str(self._kubeconfig), stdout=pipe, stderr=pipe
        )
        out, err = await asyncio.wait_for(child.communicate(), 120)
        print(" ".join(words), "->", child.returncode, out.decode(), err.decode())
        assert "Traceback" not in err.decode()
        return Ended(child.returncode or 0, out.decode(), err.decode())


@pytest.fixture
async def bed(kwok_cluster: TestCluster) -> AsyncIterator[Bed]:
    async with Bed.made(kwok_cluster.kubeconfig) as made:
        await made.ready_download()
        yield made


@pytest.fixture
def operator(kwok_cluster: TestCluster) -> Iterator[Operator]:
    with running_operator(kwok_cluster.kubeconfig) as made:
        yield made


@pytest.fixture
def person(kwok_cluster: TestCluster, bed: Bed) -> Person:
    return Person(kwok_cluster.kubeconfig, bed)


async def chat(bed: Bed, *models: str) -> None:
    await bed.create("ModelAlias", "chat", {"targets": [{"modelRef": {"name": name}} for name in models]})


async def points_at(bed: Bed) -> list[str]:
    spec = (await bed.get(MODEL_ALIASES, "chat"))["spec"]
    return [target["modelRef"]["name"] for target in spec["targets"]]


async def test_switching_loads_the_new_one_moves_the_alias_and_puts_the_old_one_to_sleep(
    bed: Bed, operator: Operator, person: Person
):
    await bed.model("old")
    await bed.model("new", replicas=0)
    await chat(bed, "old")
    await bed.until_condition("chat", "Ready", "True", resource=MODEL_ALIASES)
    done = await person.types("switch", "chat", "new", "-o", "json")
    assert done.code == 0
    assert (done.result["from"], done.result["to"], done.result["toSleep"]) == (["old"], "new", ["old"])
    assert await points_at(bed) == ["new"]
    alias = await bed.until(MODEL_ALIASES, "chat", lambda a: a["status"].get("revision") == 2)
    assert alias["status"]["history"][0]["reason"].startswith("moorage switch chat new (2")
    writers = {f["manager"] for f in alias["metadata"]["managedFields"] if "f:spec" in f["fieldsV1"]}
    assert writers == {"moorage-cli"}, "never the operator"
    slept = await bed.until(MODELS, "old", lambda m: m["status"]["desiredReplicas"] == 0)
    assert slept["spec"]["replicas"] == 1, "asleep, not unloaded"
    assert "a person asked" in slept["status"]["summary"]["message"]
    again = await person.types("switch", "chat", "new")
    assert (again.code, again.err) == (3, "error: ModelAlias chat points at new already\n")

    back = await person.types("switch", "chat", "old", "--keep", "-o", "json")
    assert (back.code, back.result["toSleep"]) == (0, [])
    assert await points_at(bed) == ["old"]
    assert (await bed.get(MODELS, "new"))["status"]["readyReplicas"] == 1


async def test_a_switch_to_a_model_that_fails_leaves_everything_as_it_was(bed: Bed, operator: Operator, person: Person):
    await bed.model("old")
    await bed.model("bad", replicas=0, nodeSelector={"no-such": "label"})
    await chat(bed, "old")
    await bed.until_condition("chat", "Ready", "True", resource=MODEL_ALIASES)
    done = await person.types("switch", "chat", "bad")
    assert done.code == 4
    last = done.err.strip().splitlines()[-1]
    assert last.startswith("error: Model bad does not become ready")
    assert last.endswith("bad is unloaded again. chat still points at old")
    assert await points_at(bed) == ["old"]
    assert (await bed.get(MODELS, "bad"))["spec"]["replicas"] == 0


async def test_a_sleeper_that_was_woken_for_a_switch_and_fails_sleeps_again(
    bed: Bed, operator: Operator, person: Person
):
    def sleeps(model: dict[str, Any]) -> bool:
        return bool(model["status"].get("phase") == "ScaledToZero" and model["status"]["scaling"].get("asleepSince"))

    await bed.model("old")
    await bed.model("napper", annotations={names.SLEEP_AT: "2026-01-01T00:00:00Z"})
    await bed.until(MODELS, "napper", sleeps)
    await bed.kube.merge_patch(MODELS, bed.namespace, "napper", {"spec": {"nodeSelector": {"no-such": "label"}}})
    await chat(bed, "old")
    done = await person.types("switch", "chat", "napper")
    assert done.code == 4
    assert done.err.strip().endswith("napper will sleep again. chat still points at old")
    assert await points_at(bed) == ["old"]
    slept = await bed.until(MODELS, "napper", sleeps)
    assert (slept["spec"]["replicas"], slept["status"]["desiredReplicas"]) == (1, 0), "as it was found"


async def test_a_switch_has_a_time_limit(bed: Bed, operator: Operator, person: Person):
    await bed.model("old")
    await bed.model("slow", replicas=1, nodeSelector={"no-such": "label"})
    await chat(bed, "old")
    done = await person.types("switch", "chat", "slow", "--timeout", "1")
    assert done.code == 5
    assert "chat still points at old" in done.err
    assert (await bed.get(MODELS, "slow"))["spec"]["replicas"] == 1, "it was not this command that loaded it"


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (("switch", "nowhere", "m"), "there is no ModelAlias nowhere in namespace"),
        (("switch", "chat", "gone"), "there is no Model gone in namespace"),
        (("switch", "chat", "short"), "short takes 512 tokens, spec.requires.contextLength is 4096"),
        (("rollback", "chat"), "ModelAlias chat has no earlier revision; known: 1"),
        (("rollback", "chat", "--to", "9"), "ModelAlias chat has no revision 9; known: 1"),
        (("rollback", "chat", "--to", "1"), "ModelAlias chat points there already"),
        (("load", "gone"), "there is no Model gone in namespace"),
        (("unload", "m"), "ModelAlias chat would have no Model left"),
        (("unload", ".."), "'..' is not a name"),
    ],
)
async def test_what_makes_no_sense_is_refused_with_a_sentence(
    bed: Bed, operator: Operator, person: Person, words: tuple[str, ...], complaint: str
):
    await bed.model("m")
    await bed.model("short", contextLength=512, benchmark={"enabled": False})
    requires = {"contextLength": 4096}
    await bed.create("ModelAlias", "chat", {"targets": [{"modelRef": {"name": "m"}}], "requires": requires})
    await bed.until_condition("chat", "Ready", "True", resource=MODEL_ALIASES)
    await bed.until(MODELS, "m", lambda m: m["status"].get("usedBy"))
    done = await person.types(*words)
    assert done.code == 3
    assert complaint in done.err
    assert await points_at(bed) == ["m"]


async def test_a_model_of_another_namespace_that_permits_nobody(bed: Bed, kwok_cluster: TestCluster, person: Person):
    await bed.model("m")
    await chat(bed, "m")
    async with Bed.made(kwok_cluster.kubeconfig) as other:
        await other.model("theirs")
        done = await person.types("switch", "chat", f"{other.namespace}/theirs")
    assert done.code == 3
    assert f"does not permit aliases of namespace {bed.namespace}" in done.err


async def test_rolling_back_and_forth(bed: Bed, operator: Operator, person: Person):
    for name in ("a", "b"):
        await bed.model(name, replicas=0)
    await chat(bed, "a")
    for revision, name in ((1, "a"), (2, "b"), (3, "a")):
        change = {"spec": {"targets": [{"modelRef": {"name": name}, "weight": revision}]}}
        await bed.kube.merge_patch(MODEL_ALIASES, bed.namespace, "chat", change)
        await bed.until(MODEL_ALIASES, "chat", lambda a, n=revision: (a.get("status") or {}).get("revision", 0) >= n)
    assert (await person.types("rollback", "chat")).code == 0
    assert await points_at(bed) == ["b"]
    alias = await bed.until(MODEL_ALIASES, "chat", lambda a: "rollback" in a["status"]["history"][0]["reason"])
    assert alias["spec"]["targets"][0]["weight"] == 2
    first = alias["status"]["history"][-1]["revision"]
    done = await person.types("rollback", "chat", "--to", str(first))
    assert done.out == f"chat points at a (weight 1) again, as in revision {first}\n"
    assert await points_at(bed) == ["a"]
    assert "a has no server now: ScaledToZero" in done.err
    await bed.kube.delete(MODELS, bed.namespace, "b")
    refused = await person.types("rollback", "chat")
    assert refused.code == 3
    assert "cannot come back: there is no Model b in namespace" in refused.err


async def test_loading_and_unloading(bed: Bed, operator: Operator, person: Person):
    await bed.model("m", replicas=0)
    assert (await person.types("load", "m", "--no-wait")).out == "m loads\n"
    assert (await person.types("load", "m")).code == 0
    assert (await bed.get(MODELS, "m"))["status"]["readyReplicas"] == 1
    assert (await person.types("load", "m")).out == "m serves; it did already\n"
    await chat(bed, "m")
    await bed.until(MODELS, "m", lambda m: m["status"].get("usedBy"))
    await bed.until_condition("chat", "Ready", "True", resource=MODEL_ALIASES)
    done = await person.types("unload", "m", "--force", "-o", "json")
    assert (done.code, done.result["replicasBefore"]) == (0, 1)
    assert (await bed.get(MODELS, "m"))["spec"]["replicas"] == 0
    assert (await person.types("unload", "m")).out == "m was unloaded already\n"


async def test_without_a_cluster(person: Person, tmp_path: Path):
    broken = tmp_path / "config"
    broken.write_text("{}")
    person._kubeconfig = broken
    done = await person.types("load", "m")
    assert done.code == 1
    assert done.err.startswith("error: no way into a cluster")
