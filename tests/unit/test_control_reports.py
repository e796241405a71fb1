"""The receiver of usage reports: who may report, and what is said to the others."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientSession, web
from click.testing import CliRunner

from moorage.control.endpoints import ReportsPort, serve_reports
from moorage.control.main import command
from moorage.control.reports import application
from moorage.errors import InvalidSpec
from moorage.usage import LONGEST_BYTES, PATH, ModelUse, Report

TOKEN = "0123456789abcdef0123"
REPORT = Report(gateway="g", instance="instance-1", models={"team/qwen": ModelUse(ok=1)})


class Receiver:
    """The receiver on a port of its own; `epoch` None: the operator is starting."""

    def __init__(self, file: Path) -> None:
        self.file, self.taken, self.epoch = file, list[Report](), "e1"
        self.url = ""

    def take(self, report: Report) -> str | None:
        self.taken.append(report)
        return self.epoch or None

    async def post(self, body: bytes, authorization: str | None = f"Bearer {TOKEN}") -> tuple[int, dict[str, str]]:
        headers = {"Authorization": authorization} if authorization is not None else {}
        async with ClientSession() as session, session.post(self.url + PATH, data=body, headers=headers) as answer:
            return answer.status, await answer.json()


@pytest.fixture
async def receiver(tmp_path: Path) -> AsyncIterator[Receiver]:
    file = tmp_path / "token"
    file.write_text(f"{TOKEN}\n")
    made = Receiver(file)
    runner = web.AppRunner(application(file, made.take))
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    host, port = runner.addresses[0][:2]
    made.url = f"http://{host}:{port}"
    yield made
    await runner.cleanup()


async def test_a_report_is_taken_and_answered_with_the_epoch(receiver: Receiver):
    assert await receiver.post(REPORT.dump()) == (200, {"epoch": "e1"})
    assert receiver.taken == [REPORT]


@pytest.mark.parametrize(
    "authorization", [None, "", "Bearer", "Bearer wrong", TOKEN, f"Basic {TOKEN}", f"Bearer {TOKEN}x", "Bearer é"]
)
async def test_without_the_token_nothing_is_even_read(receiver: Receiver, authorization: str | None):
    status, body = await receiver.post(b"nonsense", authorization)
    assert status == 401
    assert "Secret" in body["error"]
    assert TOKEN not in body["error"]
    assert receiver.taken == []


@pytest.mark.parametrize(
    ("body", "word"), [(b"", "JSON"), (b"[]", "report"), (b'{"gateway": "g", "instance": "short"}', "instance")]
)
async def test_what_is_no_report_is_named(receiver: Receiver, body: bytes, word: str):
    status, answer = await receiver.post(body)
    assert status == 400
    assert word in answer["error"]


async def test_a_report_that_is_too_long_is_refused(receiver: Receiver):
    status, answer = await receiver.post(b" " * (LONGEST_BYTES + 1))
    assert status == 413
    assert str(LONGEST_BYTES) in answer["error"]


async def test_before_the_cluster_is_read_it_asks_to_come_again(receiver: Receiver):
    receiver.epoch = ""
    assert (await receiver.post(REPORT.dump()))[0] == 503


async def test_a_new_token_counts_without_a_restart(receiver: Receiver):
    receiver.file.write_text("another-token-of-some-length")
    assert (await receiver.post(REPORT.dump()))[0] == 401
    assert (await receiver.post(REPORT.dump(), "Bearer another-token-of-some-length"))[0] == 200


async def test_a_token_that_is_gone_refuses_everybody(receiver: Receiver):
    receiver.file.unlink()
    assert (await receiver.post(REPORT.dump()))[0] == 401


@pytest.mark.parametrize(("content", "word"), [(None, "No such file"), ("short", "16 bytes")])
async def test_it_does_not_start_without_a_token(tmp_path: Path, content: str | None, word: str):
    file = tmp_path / "token"
    if content is not None:
        file.write_text(content)
    nobody: Any = None
    with pytest.raises(InvalidSpec, match=word):
        await serve_reports(nobody, ReportsPort("127.0.0.1:0", file))


@pytest.mark.parametrize("args", [["--reports", "127.0.0.1:1"], ["--reports-token-file", "/nowhere"]])
def test_port_and_token_belong_together(args: list[str]):
    done = CliRunner().invoke(command, args)
    assert done.exit_code == 2
    assert "belong together" in done.output
