"""Options of the commands for people."""

import click
import pytest

from moorage.people.session import Duration


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 90), ("30s", 30), ("10m", 600), ("1h30m", 5400), ("500ms", 0.5), ("0", 0)]
)
def test_durations_are_written_as_for_kubectl_or_in_seconds(text, seconds):
    assert Duration().convert(text, None, None) == seconds


@pytest.mark.parametrize("text", ["", "10x", "-5", "1.5", "ten minutes"])
def test_what_is_no_duration_is_told_how_to_write_one(text):
    with pytest.raises(click.BadParameter, match="30s, 10m or 1h30m"):
        Duration().convert(text, None, None)
