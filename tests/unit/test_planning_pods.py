"""What a person reads about a pod that does not serve: sentences, without what says nothing."""

import pytest

from moorage.api.conditions import Reason
from moorage.planning.pods import scheduler_words, trouble


def pod(**state):
    container = {"name": "engine", "ready": False, "restarts": state.pop("restarts", 0), **state}
    return {"phase": "Running", "unschedulable": "", "containers": [container]}


@pytest.mark.parametrize(
    "tail",
    [
        ". no new claims to deallocate, preemption: 0/1 nodes are available: 1 Preemption is not helpful.",
        ". preemption: 0/1 nodes are available: 1 No preemption victims found for incoming pod.",
        "",
    ],
)
def test_the_scheduler_is_not_repeated(tail: str):
    assert scheduler_words(f"0/1 nodes are available: 1 Insufficient memory{tail}") == (
        "0/1 nodes are available: 1 Insufficient memory"
    )


def test_an_unschedulable_pod_is_told_in_a_sentence():
    found = trouble({"phase": "Pending", "unschedulable": "0/2 nodes are available: 2 Insufficient cpu."})
    assert found is not None
    assert found.message == "no node takes the pod: 0/2 nodes are available: 2 Insufficient cpu."


def test_a_killed_servers_log_is_left_out():
    found = trouble(pod(last={"reason": "OOMKilled", "exitCode": 137, "message": "loading model"}, restarts=2))
    assert found is not None
    assert found.reason == Reason.OUT_OF_MEMORY
    assert found.message == (
        "container engine was killed for lack of host memory (2 restarts); "
        "raise resources.limits.memory, or ask for less context"
    )


@pytest.mark.parametrize(("restarts", "words"), [(0, ""), (1, " (1 restart)"), (2, " (2 restarts)")])
def test_restarts_are_counted_in_english(restarts: int, words: str):
    found = trouble(pod(terminated={"exitCode": 1, "message": "error: bad magic"}, restarts=restarts))
    assert found is not None
    assert found.message == f"container engine exited with code 1{words}: error: bad magic"
