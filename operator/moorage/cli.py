"""The `moorage` command: one subcommand per process of the house, and the commands for people.

Subcommands are imported when they are called, so that `moorage download` in a Job never pays for kopf or the
Kubernetes client.
"""

import importlib

import click

from moorage import __version__

COMMANDS = {
    "operator": "moorage.control.main:command",
    "gateway": "moorage.gateway.main:command",
    "key": "moorage.gateway.key_command:command",
    "download": "moorage.download.main:command",
    "bench": "moorage.bench.main:command",
    "estimate": "moorage.estimate.main:command",
    "agent": "moorage.agent.main:command",
    "render": "moorage.render.main:command",
    "explain": "moorage.explain.main:command",
    "switch": "moorage.people.switch:command",
    "rollback": "moorage.people.rollback:command",
    "load": "moorage.people.load:load",
    "unload": "moorage.people.load:unload",
}

FOR_PEOPLE = ("switch", "rollback", "load", "unload", "explain", "key create", "estimate", "render")
"""Commands that people type; docs/reference/commands.md is made of their help. The others are processes."""


class LazyGroup(click.Group):
    """A click group that imports a subcommand's module when it is first named."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names of all subcommands, in the order of the table."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The subcommand called `cmd_name`, or None where there is none."""
        target = COMMANDS.get(cmd_name)
        if target is None:
            return None
        module, attribute = target.split(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command


@click.command(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.version_option(__version__, prog_name="moorage")
def main() -> None:
    """Run language models on your own GPUs, on Kubernetes."""


def kubectl() -> None:
    """The same as `kubectl moorage`: kubectl finds the program kubectl-moorage on the PATH."""
    main(prog_name="kubectl moorage")
