"""The page about downloads names the numbers of the code, and the help every exit code."""

from pathlib import Path

from click.testing import CliRunner

from moorage.download import pieces, retry
from moorage.download.main import command
from moorage.download.pace import FLOOR_BYTES_PER_SECOND
from moorage.download.progress import Phase
from moorage.download.settings import Settings
from moorage.sources import CATALOG

PAGE = (Path(__file__).resolve().parents[2] / "docs/concepts/downloads.md").read_text()


def test_numbers():
    defaults = Settings(Path())
    for words in (
        f"at most {pieces.LARGEST_PIECE >> 20} MiB",
        f"less than {FLOOR_BYTES_PER_SECOND // 1000} KB/s came over the stall time-out ({defaults.stall_timeout:g} s)",
        f"from {retry.FIRST_DELAY:g} s to {retry.LONGEST_DELAY:g} s",
        f"more than {retry.NO_PROGRESS_SECONDS:g} s after the last progress",
        f"metadata: {defaults.request_timeout:g} s each",
        f"of them ({defaults.retries})",
        f"waits ({defaults.lock_wait:g} s)",
        f"`connections` ({defaults.connections})",
    ):
        assert words in PAGE


def test_phases():
    assert all(f"    {phase}" in PAGE for phase in Phase if phase is not Phase.FAILED)


def test_help_has_every_exit_code_and_no_option_without_words():
    told = CliRunner().invoke(command, ["--help"], terminal_width=200).output
    for reason, facts in CATALOG.items():
        assert f"{facts.exit_code:<3} {reason}" in told
    options = [p for p in command.params if getattr(p, "help", "") is None]
    assert [o.name for o in options] == []
