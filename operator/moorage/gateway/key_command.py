"""The `moorage key` command: API keys for the gateway, made on the spot and nowhere kept.

Exit codes: 0 made, 2 wrong usage.
"""

import json
import re
import sys
import time

import click
import yaml

from moorage.gateway.keys import SHORTEST_KEY, Key, Limits, digest, manifest, new_secret

_DAY = 24 * 3600
_NAME = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")
_CREATE_HELP = """Make an API key: the Secret goes to stdout, the key itself to stderr, this once.

    The Secret holds only the key's SHA-256. It belongs into the namespace of the gateway, which has to run with
    `gateway.requireKeys: true`; within a second of being applied it counts, and deleting it revokes the key.

    \b
    Examples
      moorage key create team-a --for-namespace team-a | kubectl apply -f -
      moorage key create app --alias chat --alias embed --requests-per-minute 600 > app-key.yaml
      moorage key create guest --alias chat --expires-in 30 | kubectl apply -f -
      printf %s "$KEY" | moorage key create old-app --stdin

    \b
    Exit codes
      0    made
      2    wrong usage
    """


@click.group("key")
def command() -> None:
    """API keys of the gateway."""


@command.command("create", help=_CREATE_HELP)
@click.argument("name")
@click.option("--namespace", "-n", default="moorage-system", show_default=True, help="The gateway's namespace.")
@click.option("--for-namespace", multiple=True, help="Only Models and aliases of this namespace; may be repeated.")
@click.option("--alias", multiple=True, help="Only this alias or Model (NAME or NAMESPACE/NAME); may be repeated.")
@click.option("--requests-per-minute", type=click.IntRange(1), default=None, help="In each gateway pod.")
@click.option("--tokens-per-minute", type=click.IntRange(1), default=None, help="Prompt and completion together.")
@click.option("--max-concurrency", type=click.IntRange(1), default=None, help="Requests under way or waiting at once.")
@click.option("--expires-in", metavar="DAYS", type=click.IntRange(1, 36500), default=None, help="Days from now.")
@click.option("--stdin", "from_stdin", is_flag=True, help="Take the key from stdin instead of making one.")
@click.option("--output", "-o", type=click.Choice(["yaml", "json"]), default="yaml", show_default=True)
def create(
    name: str,
    namespace: str,
    for_namespace: tuple[str, ...],
    alias: tuple[str, ...],
    requests_per_minute: int | None,
    tokens_per_minute: int | None,
    max_concurrency: int | None,
    expires_in: int | None,
    from_stdin: bool,
    output: str,
) -> None:
    """See _CREATE_HELP."""
    if not _NAME.fullmatch(name):
        raise click.BadParameter(f"{name!r} is no name for a Secret", param_hint="NAME")
    if bad := next((word for word in (*for_namespace, *alias) if not word.strip() or "," in word), None):
        raise click.UsageError(f"{bad!r} is no name: repeat the option for each")
    secret = sys.stdin.read().strip() if from_stdin else new_secret()
    if len(secret) < SHORTEST_KEY:
        raise click.UsageError(f"a key has at least {SHORTEST_KEY} characters, and nobody should be able to guess it")
    key = Key(
        name,
        (digest(secret),),
        frozenset(alias) or None,
        for_namespace or None,
        Limits(requests_per_minute or 0, tokens_per_minute or 0, max_concurrency or 0),
        int(time.time()) + expires_in * _DAY if expires_in else 0,
    )
    made = manifest(key, namespace)
    click.echo(json.dumps(made, indent=2) if output == "json" else yaml.safe_dump(made, sort_keys=False).rstrip())
    if not for_namespace and (bare := [word for word in alias if "/" not in word and word != "*"]):
        click.echo(f"Note: it opens {', '.join(bare)} of every namespace; --for-namespace says of which one.", err=True)
    if not from_stdin:
        click.echo(f"The key, which is shown only now:\n{secret}", err=True)
