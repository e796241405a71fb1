"""How the operator's process begins and ends."""

import asyncio
import threading
from pathlib import Path

import pytest

from moorage.control import operator as operator_module
from moorage.control.kopf_app import run
from moorage.control.operator import Operator
from moorage.control.settings import Settings
from moorage.errors import Unavailable

KUBECONFIG = """\
apiVersion: v1
kind: Config
clusters: [{name: c, cluster: {server: "http://127.0.0.1:1"}}]
contexts: [{name: c, context: {cluster: c, user: u}}]
users: [{name: u, user: {}}]
current-context: c
"""


def test_an_api_server_that_does_not_answer_ends_the_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """kopf would try the start again in the same process a minute later, over what the first try left running."""
    monkeypatch.setattr(operator_module, "SYNC_SECONDS", 0.3)
    kubeconfig = tmp_path / "kubeconfig"
    kubeconfig.write_text(KUBECONFIG)
    ended: list[BaseException | None] = []

    async def main() -> None:
        await run(await Operator.connect(kubeconfig, Settings()), kubeconfig, None)

    def thread() -> None:
        try:
            asyncio.run(main())
            ended.append(None)
        except BaseException as error:
            ended.append(error)

    worker = threading.Thread(target=thread, daemon=True)
    worker.start()
    worker.join(20)
    assert ended, "it still tries"
    assert isinstance(ended[0], Unavailable), "main() prints it as a sentence and exits with 1"
    assert "could not be listed" in str(ended[0])
