"""What an alias requires, from the spec to the request: operator and gateway on a real API server."""

from collections.abc import Iterator

import pytest

from moorage.control.operator import Operator
from moorage.kube.resources import MODEL_ALIASES, MODELS
from tests.api.test_gateway_cluster import bed, followed, pointing_at
from tests.conftest import TestCluster
from tests.process.gateway.support import get, post
from tests.support.bed import Bed, condition, running_operator
from tests.support.eventually import PATIENCE, eventually

pytestmark = pytest.mark.api
__all__ = ["bed"]  # the fixture

TOOLS = {"requires": {"capabilities": ["tools"]}}


@pytest.fixture
def operator(kwok_cluster: TestCluster) -> Iterator[Operator]:
    with running_operator(kwok_cluster.kubeconfig) as made:
        yield made


async def test_an_alias_that_requires_tools_is_ready_once_a_model_is_known_to_have_them(
    bed: Bed, operator: Operator, kwok_cluster: TestCluster
):
    await bed.model("m")
    await bed.create("ModelAlias", "agent", pointing_at("m", **TOOLS))
    async with followed(kwok_cluster.kubeconfig, bed.namespace) as gateway:
        await bed.until_condition("m", "Ready", "True")
        said = "m lacks tools: its files and server show nothing; if it can do that, list all"
        await bed.until(MODEL_ALIASES, "agent", lambda a: condition(a, "Ready").get("message", "").startswith(said))
        await bed.until_condition("agent", "Ready", "False", "TargetFallsShort", resource=MODEL_ALIASES)
        await eventually(lambda: gateway.endpoints("m") and gateway.table.routes["agent"].lacking, PATIENCE, "the gap")
        refused = await gateway.ask(post({"model": "agent", "messages": []}))
        assert (refused.status, refused.error["code"]) == (503, "requirements_not_met")

        await bed.kube.merge_patch(MODELS, bed.namespace, "m", {"spec": {"capabilities": ["chat", "tools"]}})
        await bed.until_condition("agent", "Ready", "True", resource=MODEL_ALIASES)
        told = [{"name": name, "evidence": "Declared"} for name in ("chat", "tools")]
        await bed.until(MODELS, "m", lambda m: m["status"].get("capabilities") == told)
        await eventually(lambda: gateway.reached("agent") == ["m"], PATIENCE, "the route")
        listed = (await gateway.ask(get("/v1/models/agent"))).json
        assert listed["capabilities"] == ["chat", "tools"]


async def test_requests_go_past_a_target_that_falls_short(bed: Bed, operator: Operator, kwok_cluster: TestCluster):
    await bed.model("plain")
    await bed.model("able", capabilities=["chat", "tools"], contextLength=4096)
    await bed.create("ModelAlias", "agent", pointing_at("plain", "able", **TOOLS))
    async with followed(kwok_cluster.kubeconfig, bed.namespace) as gateway:
        await bed.until_condition("agent", "Ready", "True", resource=MODEL_ALIASES)
        await bed.until_condition("agent", "Resolved", "False", "TargetFallsShort", resource=MODEL_ALIASES)
        await eventually(lambda: gateway.reached("agent") == ["able"], PATIENCE, "the other's share")
        much = {"spec": {"requires": {"contextLength": 8192}}}
        await bed.kube.merge_patch(MODEL_ALIASES, bed.namespace, "agent", much)
        await eventually(lambda: gateway.reached("agent") == [], PATIENCE, "nobody left")
        assert gateway.table.routes["agent"].lacking == ("contextLength", "tools")
        await bed.until_condition("agent", "Ready", "False", "TargetFallsShort", resource=MODEL_ALIASES)
