"""API keys as people make, change and take them away: Secrets on a real API server, and the gateway's own process.

What each limit does is in tests/process/gateway/test_gateway_key_limits.py.
"""

import asyncio
import base64
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from moorage.gateway.key_command import command as key_command
from moorage.gateway.keys import digest
from moorage.kube.resources import SECRETS
from tests.conftest import TestCluster
from tests.process.gateway.support import Client, Reply, chat
from tests.process.gateway.test_gateway_command import Process, command
from tests.support.bed import Bed
from tests.support.eventually import PATIENCE

pytestmark = pytest.mark.api

AT_ONCE = 5.0
"""Seconds for a change of a Secret to be in force, on a loaded machine; what was measured is printed."""
NOTHING = "nothing-of-this-name"
"""A request for it says what a key may, and waits for nobody."""


@dataclass
class Door:
    """A gateway that needs keys."""

    bed: Bed
    process: Process

    async def make(self, name: str, *options: str) -> str:
        """`moorage key create NAME ... | kubectl apply -f -`; the key, as soon as the gateway knows it."""
        done = CliRunner().invoke(key_command, ["create", name, "--namespace", self.bed.namespace, *options])
        assert done.exit_code == 0, done.stderr
        await self.bed.kube.create(yaml.safe_load(done.stdout))
        secret = done.stderr.split()[-1]
        await self.until(secret, is_known)
        return secret

    async def ask(self, secret: str, model: str = NOTHING) -> Reply:
        async with Client.connected(self.process.public) as client:
            return await client.ask(chat(model), Authorization=f"Bearer {secret}")

    async def until(self, secret: str, good: Callable[[Reply], bool]) -> float:
        """Seconds until a request with this key is answered so."""
        began = time.monotonic()
        while not good(reply := await self.ask(secret)):
            assert time.monotonic() - began < PATIENCE, reply
            await asyncio.sleep(0.01)
        return time.monotonic() - began


def is_known(reply: Reply) -> bool:
    return reply.status != 401


def is_unknown(reply: Reply) -> bool:
    return reply.status == 401


@pytest.fixture
async def door(api_cluster: TestCluster) -> AsyncIterator[Door]:
    async with Bed.made(api_cluster.kubeconfig) as bed:
        options = ["--kubeconfig", str(api_cluster.kubeconfig), "--default-namespace", bed.namespace, "--verbose"]
        options += ["--require-keys", "--keys-namespace", bed.namespace, "--drain-delay", "0"]
        async with command(None, *options) as process:
            yield Door(bed, process)


async def test_rotated_changed_expired_and_deleted_keys_count_at_once_without_a_restart(door: Door):
    kube, namespace = door.bed.kube, door.bed.namespace
    old, new = await door.make("app"), "sk-moorage-" + "n" * 40
    took = {}

    async def change(what: str, patch: dict[str, Any], secret: str, good: Callable[[Reply], bool]) -> None:
        await kube.merge_patch(SECRETS, namespace, "app", patch)
        took[what] = await door.until(secret, good)

    def holding(*secrets: str) -> dict[str, Any]:
        text = "".join(f"{digest(one).hex()}\n" for one in secrets)
        return {"data": {"sha256": base64.b64encode(text.encode()).decode()}}

    def noted(**annotations: str | None) -> dict[str, Any]:
        return {"metadata": {"annotations": {f"moorage.dev/{k.replace('_', '-')}": v for k, v in annotations.items()}}}

    await change("a second one beside it", holding(old, new), new, is_known)
    assert is_known(await door.ask(old))
    await change("the first one taken out", holding(new), old, is_unknown)
    await change("fewer aliases", noted(aliases="chat"), new, lambda reply: reply.status == 403)
    await change("all again", noted(aliases=None), new, lambda reply: reply.status == 404)
    await change("over", noted(expires_at="2020-01-01T00:00:00Z"), new, is_unknown)
    assert (await door.ask(new)).error["message"] == "This API key has expired."
    await change("longer", noted(expires_at="2099-01-01T00:00:00Z"), new, is_known)
    await change("a slip", noted(max_concurrency="few"), new, is_unknown)
    await change("mended", noted(max_concurrency=None), new, is_known)
    await kube.delete(SECRETS, namespace, "app")
    took["deleted"] = await door.until(new, is_unknown)
    print("\n" + ", ".join(f"{what}: {1000 * seconds:.0f} ms" for what, seconds in took.items()))
    assert max(took.values()) < AT_ONCE
    assert door.process.process.returncode is None
    assert "max-concurrency is a whole number above 0, not 'few'" in door.process.log
    assert not [secret for secret in (old, new) if secret in door.process.log]


async def test_a_key_of_one_namespace_learns_nothing_of_another(door: Door):
    away = await door.make("away", "--for-namespace", "elsewhere", "--requests-per-minute", "600")
    await door.bed.model("m", replicas=0)
    for name, status in (("m", 404), ("elsewhere/m", 404), (f"{door.bed.namespace}/m", 403), ("nowhere/m", 403)):
        assert (await door.ask(away, name)).status == status
