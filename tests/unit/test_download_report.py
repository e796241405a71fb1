"""The result, and what Kubernetes keeps of it."""

import json

from moorage.download import report
from moorage.sources import Reason, source_error


def test_a_failure_has_every_key_of_the_contract():
    error = source_error(Reason.RATE_LIMITED, "too many requests", after=7.9)
    outcome = report.failure(error, "m.gguf", {"commit": "c", "bytes": 5})
    assert outcome == {
        "reason": "RateLimited",
        "message": "too many requests",
        "bytes": 5,
        "files": [],
        "revision": "",
        "commit": "c",
        "manifestDigest": "",
        "file": "m.gguf",
        "retryAfterSeconds": 7,
    }


def test_the_termination_message_fits():
    error = source_error(Reason.NO_FILES_MATCHED, "ä" * 9000)
    files = [{"path": "x" * 200, "sizeBytes": 1, "sha256": "0" * 64}] * 100
    outcome = report.failure(error, "y" * 3000, {"files": files, "formats": {"GGUF": ["z" * 5000]}})
    data = report.termination_message(outcome)
    assert len(data) <= 4096
    told = json.loads(data)
    assert told["reason"] == "NoFilesMatched"
    assert told["message"].startswith("ä")
    assert "files" not in told


def test_facts_of_a_header_without_measure_fit_too():
    facts = {"header": "h" * 9000, "architecture": "a" * 9000}
    made = report.result(Reason.COMPLETE, "ok", {"facts": facts, "folder": "f" * 2000, "revision": "r"})
    told = json.loads(report.termination_message(made))
    assert (told["reason"], told["message"], told["folder"]) == ("Complete", "ok", "f" * 2000)
    assert "facts" not in told
    small = json.loads(report.termination_message({**made, "facts": {"header": "h" * 9000, "format": "GGUF"}}))
    assert small["facts"] == {"header": None, "format": "GGUF"}
    assert len(report.termination_message({**made, "revision": "r" * 9000})) <= 4096


def test_publish(tmp_path, capsys):
    code = report.publish(report.result(Reason.COMPLETE, "ok", {}), tmp_path / "log")
    assert code == 0
    assert json.loads(capsys.readouterr().out)["reason"] == "Complete"
    assert json.loads((tmp_path / "log").read_bytes())["reason"] == "Complete"


def test_a_termination_log_that_cannot_be_written_is_no_failure(tmp_path, capsys):
    assert report.publish(report.result(Reason.STALLED, "x", {}), tmp_path / "no/log") == 34
    assert capsys.readouterr().out
