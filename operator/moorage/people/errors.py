"""How the commands for people end: one exception for each exit code.

Exit codes: 0 done; 1 the API server refused or cannot be reached; 2 wrong usage; 3 it makes no sense (there is no such
object or revision, it is not permitted, nothing would change); 4 a Model failed or waits for a person; 5 it took too
long.
"""

from typing import IO, Any

import click

from moorage.errors import MoorageError


class Stopped(click.ClickException):
    """The command ends with `exit_code`; what it says goes to stderr."""

    def show(self, file: IO[Any] | None = None) -> None:
        """One line on stderr."""
        click.echo(f"error: {self.message}", err=True)


class ApiFailed(Stopped):
    """The API server refused or cannot be reached."""

    exit_code = 1


class Senseless(Stopped):
    """What was asked for makes no sense here."""

    exit_code = 3


class ModelFailed(Stopped):
    """A Model failed, or waits for a person."""

    exit_code = 4


class TookTooLong(Stopped):
    """It took longer than the person wants to wait."""

    exit_code = 5


def from_api(error: MoorageError) -> Stopped:
    """What the API server (or the way to it) said, as the end of a command."""
    return ApiFailed(str(error))
