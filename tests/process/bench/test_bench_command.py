"""The command as a process: streams, exit codes, the termination message, signals."""

import asyncio
import json
import signal
import subprocess
import sys
import time

import pytest

from moorage.bench.verdict import EXIT_CODES, Reason
from tests.process.bench.support import FAST, bench, command, environment
from tests.support.eventually import PATIENCE, SLACK, eventually
from tests.support.mockengine import ROOT, Behaviour, fetch_requests, mock_process

SHORT = ("--requests", 20, "--input-tokens", 64, "--output-tokens", 10)


@pytest.fixture(scope="module")
def url():
    with mock_process(Behaviour(**FAST)) as address:
        yield address


def test_json_on_stdout_progress_on_stderr_and_the_same_as_termination_message(url, tmp_path):
    log = tmp_path / "termination-log"
    ended = bench("--url", url, *SHORT, "-o", "json", MOORAGE_TERMINATION_LOG=str(log))
    assert ended.code == 0, ended.stderr
    assert ended.facts["conditions"]["engine"] == {"name": "llama.cpp", "version": "b1-mock"}
    assert "warming up" in ended.stderr
    assert json.loads(log.read_bytes()) == ended.facts
    assert len(log.read_bytes()) <= 4096


def test_a_table_for_people(url):
    ended = bench("--url", url, *SHORT, "--profile", "throughput", "--concurrency", 1, "--concurrency", 3)
    assert ended.code == 0, ended.stderr
    lines = ended.stdout.splitlines()
    assert [line.split("  ")[0] for line in lines[-3:]] == ["LOAD", "concurrency 1", "concurrency 3"]


def test_a_refusal_is_told_three_times(url, tmp_path):
    log = tmp_path / "termination-log"
    ended = bench("--url", url, "--requests", 10, "-o", "json", MOORAGE_TERMINATION_LOG=str(log))
    assert ended.code == 2
    assert ended.facts["reason"] == "TooFewSamples"
    assert "10 requests" in ended.facts["message"]
    assert json.loads(log.read_bytes()) == ended.facts
    assert "TooFewSamples: 10 requests" in ended.stderr


@pytest.mark.parametrize(
    ("behaviour", "options", "reason"),
    [
        ({"output_tokens": 5}, SHORT, Reason.OUTPUT_LENGTH_OFF),
        ({"fault": "500", "fault_from": 12}, SHORT, Reason.TOO_MANY_FAILURES),
        ({"usage": "none"}, SHORT, Reason.NO_USAGE),
        ({"fault": "404"}, SHORT, Reason.REQUEST_REJECTED),
        ({"fault": "silent"}, (*SHORT, "--request-timeout", 0.3), Reason.UNREACHABLE),
        ({"ttft": 0.3}, (*SHORT, "--timeout", 1), Reason.TIMED_OUT),
        ({}, (*SHORT, "--profile", "rate"), Reason.INVALID_ARGUMENTS),
        ({}, (*SHORT, "--profile", "throughput", "--concurrency", 21), Reason.INVALID_ARGUMENTS),
        ({}, (*SHORT, "--no-such-option"), Reason.INVALID_ARGUMENTS),
    ],
    ids=lambda value: value.value if isinstance(value, Reason) else "",
)
def test_each_reason_has_its_exit_code(behaviour, options, reason, tmp_path):
    log = tmp_path / "termination-log"
    with mock_process(Behaviour(**{**FAST, **behaviour})) as address:
        ended = bench("--url", address, *options, MOORAGE_TERMINATION_LOG=str(log))
    assert ended.code == EXIT_CODES[reason], ended.stderr
    assert json.loads(log.read_bytes())["reason"] == reason
    assert ended.stdout == ""


def test_a_termination_log_that_cannot_be_written_loses_no_result(url, tmp_path):
    ended = bench("--url", url, *SHORT, "-o", "json", MOORAGE_TERMINATION_LOG=str(tmp_path))
    assert ended.code == 0
    assert ended.facts["requests"]["total"] == 20
    assert "no termination message" in ended.stderr


def test_the_api_key_goes_to_the_server_and_nowhere_else(url, tmp_path):
    log = tmp_path / "termination-log"
    ended = bench("--url", url, *SHORT, "-o", "json", MOORAGE_API_KEY="s3cret", MOORAGE_TERMINATION_LOG=str(log))
    assert ended.code == 0
    assert "s3cret" not in ended.stdout + ended.stderr + log.read_text()
    assert fetch_requests(url)[-1].authorization == "Bearer s3cret"


@pytest.mark.parametrize(("number", "code", "name"), [(signal.SIGTERM, 143, "SIGTERM"), (signal.SIGINT, 130, "SIGINT")])
async def test_a_signal_ends_the_run_at_once(number, code, name, tmp_path):
    log = tmp_path / "termination-log"
    with mock_process(Behaviour(ttft=300)) as address:
        process = await asyncio.create_subprocess_exec(
            *command("--url", address, *SHORT),
            env=environment(MOORAGE_TERMINATION_LOG=str(log)),
            stderr=subprocess.PIPE,
        )
        await eventually(lambda: fetch_requests(address))
        start = time.monotonic()
        process.send_signal(number)
        _, errors = await asyncio.wait_for(process.communicate(), PATIENCE)
        took = time.monotonic() - start
        await eventually(lambda: all(r.disconnected for r in fetch_requests(address)))
    assert process.returncode == code
    assert took < SLACK, "and does not wait for the first token"
    assert json.loads(log.read_bytes()) == {"reason": "Interrupted", "message": f"stopped by {name}"}
    assert name.encode() in errors


def test_the_process_ends_though_the_event_loop_hangs(tmp_path):
    log = tmp_path / "termination-log"
    hang = "import time; from moorage.bench.main import _ended_by_signals as e\nwith e(0.3): time.sleep(60)"
    process = subprocess.run(
        [sys.executable, "-c", hang],
        env=environment(MOORAGE_TERMINATION_LOG=str(log)),
        cwd=ROOT,
        timeout=PATIENCE,
        check=False,
    )
    assert process.returncode == EXIT_CODES[Reason.TIMED_OUT]
    assert json.loads(log.read_bytes())["reason"] == "TimedOut"


def test_a_fault_of_this_program_is_told_as_one(tmp_path):
    log = tmp_path / "termination-log"
    fault = (
        "import moorage.bench.main as m\n"
        "def broken(*_): raise RuntimeError('a bug')\n"
        "m.benchmark = broken\n"
        "m.command(['--url', 'http://127.0.0.1:9', '--model', 'm'])"
    )
    process = subprocess.run(
        [sys.executable, "-c", fault],
        env=environment(MOORAGE_TERMINATION_LOG=str(log)),
        capture_output=True,
        timeout=PATIENCE,
        check=False,
    )
    assert process.returncode == EXIT_CODES[Reason.INTERNAL]
    assert json.loads(log.read_bytes()) == {"reason": "Internal", "message": "RuntimeError: a bug"}
    assert b"Traceback" in process.stderr
