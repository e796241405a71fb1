"""The commands for people: what they decide, and that each of them explains itself."""

import importlib.metadata

import click
import pytest
from click.testing import CliRunner

from moorage.api.alias import ModelAlias
from moorage.api.model import Model
from moorage.cli import COMMANDS, FOR_PEOPLE, main
from moorage.people.errors import Senseless
from moorage.people.rollback import earlier
from moorage.people.waiting import failed, serves


@pytest.mark.parametrize("name", FOR_PEOPLE)
def test_help_has_examples_and_exit_codes(name: str):
    text = CliRunner().invoke(main, [*name.split(), "--help"]).output
    assert f"moorage {name} " in text.partition("Options:")[0].replace(f"Usage: moorage {name}", "", 1), "an example"


@pytest.mark.parametrize("name", [n for n in FOR_PEOPLE if "moorage.people" in COMMANDS.get(n, "")])
def test_commands_on_a_cluster_take_the_same_options(name: str):
    command = main.get_command(click.Context(main), name)
    assert command is not None
    options = {option for param in command.params for option in param.opts}
    assert options >= {"-n", "--namespace", "--context", "--kubeconfig", "-o", "--output"}
    text = CliRunner().invoke(main, [*name.split(), "--help"]).output
    assert "Exit codes" in text
    assert "    3    " in text


def test_kubectl_finds_the_plugin():
    scripts = {e.name: e.value for e in importlib.metadata.entry_points(group="console_scripts")}
    assert scripts["kubectl-moorage"] == "moorage.cli:kubectl"


def alias(*revisions: str, present: str) -> ModelAlias:
    """An alias that points at `present`; its revisions, the newest first."""

    def targets(name: str) -> list[dict[str, object]]:
        return [{"modelRef": {"name": name}, "weight": 100}]

    numbered = zip(range(len(revisions), 0, -1), revisions, strict=True)
    history = [{"revision": number, "targets": targets(name)} for number, name in numbered]
    meta = {"name": "chat", "namespace": "ns"}
    return ModelAlias.read({"metadata": meta, "spec": {"targets": targets(present)}, "status": {"history": history}})


def test_one_step_back_is_the_newest_revision_with_other_targets():
    assert earlier(alias("b", "a", present="b"), None).revision == 1
    assert earlier(alias("b", "b", "a", present="b"), None).revision == 1
    assert earlier(alias("b", "a", present="c"), None).revision == 2, "the operator has not seen the change yet"


def test_a_named_revision():
    assert earlier(alias("c", "b", "a", present="c"), 1).targets[0].model_ref.name == "a"
    for number, why in ((7, "has no revision 7; known: 3, 2, 1"), (3, "points there already")):
        with pytest.raises(Senseless, match=why):
            earlier(alias("c", "b", "a", present="c"), number)
    with pytest.raises(Senseless, match="no earlier revision; known: none"):
        earlier(alias(present="a"), None)


def model(generation: int = 1, **status: object) -> Model:
    source = {"source": {"downloadRef": {"name": "d"}}}
    return Model.read({"metadata": {"generation": generation}, "spec": source, "status": status})


READY = {"type": "Ready", "status": "True"}
UNREADY = {"type": "Ready", "status": "False"}
STALLED = {"type": "Stalled", "status": "True"}


@pytest.mark.parametrize(
    ("found", "up", "down"),
    [
        (model(), False, False),
        (model(observedGeneration=1, conditions=[READY], readyReplicas=1), True, False),
        (model(observedGeneration=1, conditions=[READY], readyReplicas=0), False, False),  # asleep
        (model(2, observedGeneration=1, conditions=[READY], readyReplicas=1), False, False),  # of the spec before
        (model(2, observedGeneration=1, phase="Failed"), False, False),
        (model(observedGeneration=1, phase="Failed"), False, True),
        (model(observedGeneration=1, phase="Blocked"), False, True),
        (model(observedGeneration=1, phase="Loading", conditions=[STALLED, UNREADY]), False, True),
        (model(observedGeneration=1, phase="Degraded", conditions=[STALLED, READY], readyReplicas=1), True, False),
        (model(observedGeneration=1, phase="Downloading", conditions=[UNREADY]), False, False),
    ],
)
def test_what_a_status_means_for_somebody_who_waits(found: Model, up: bool, down: bool):
    assert (serves(found), failed(found)) == (up, down)
