"""The command line of `moorage download`."""

import logging
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import click

from moorage.download import report
from moorage.download.inspect import inspect
from moorage.download.pace import StopError
from moorage.download.progress import PortTaken
from moorage.download.run import Run, facts_of
from moorage.download.settings import Settings, Verify
from moorage.download.source import HubSource, Source, UrlSource
from moorage.errors import SourceError
from moorage.sources import CATALOG, DEFAULT_ENDPOINT, Access, HostPolicy, Reason, Repository, Selection, source_error
from moorage.sources.access import parse_headers

_LEAVE_SECONDS = 0.85

EPILOG = """\b
Examples:
  moorage download --repo Qwen/Qwen3-8B-GGUF --quantization Q4_K_M --dest /models/qwen3-8b
  moorage download --repo org/private --file model.gguf --dest /models/x         (token: HF_TOKEN)
  moorage download --url https://example.org/m.gguf --sha256 HEX --dest /models/m
  moorage download --repo org/name --include '*.safetensors' --manifest-only
  moorage download --inspect /models/prefilled

\b
Exit codes:
""" + "\n".join(f"  {facts.exit_code:<3} {reason}" for reason, facts in CATALOG.items())


@click.command(epilog=EPILOG)
@click.option(
    "--endpoint", default=DEFAULT_ENDPOINT, envvar="HF_ENDPOINT", show_default=True, help="Base URL of the hub."
)
@click.option("--repo", metavar="[ORG/]NAME", help="Repository on the hub.")
@click.option("--revision", default="main", show_default=True, help="Branch, tag or commit.")
@click.option("--include", multiple=True, metavar="GLOB", help="fnmatch over the whole path; repeatable.")
@click.option("--exclude", multiple=True, metavar="GLOB", help="Leave these out; repeatable.")
@click.option("--file", "files", multiple=True, metavar="PATH", help="An exact path, brackets and all; repeatable.")
@click.option("--quantization", metavar="LABEL", help="One GGUF model (all parts) and its projector, such as Q4_K_M.")
@click.option("--url", help="A plain http(s) file instead of a repository.")
@click.option("--sha256", metavar="HEX", help="Its checksum; needed with --url.")
@click.option("--file-name", help="Its name on disk (default: the last part of the URL).")
@click.option("--header-file", type=click.Path(path_type=Path), help="'Name: value' lines sent to the source's origin.")
@click.option("--dest", metavar="DIR", type=click.Path(path_type=Path), help="Folder on the volume.")
@click.option("--connections", type=click.IntRange(1, 64), default=8, show_default=True, help="At once, all files.")
@click.option(
    "--verify",
    type=click.Choice([v.value for v in Verify]),
    default="full",
    show_default=True,
    help="full: every byte is hashed; size, none: sizes only.",
)
@click.option(
    "--stall-timeout",
    type=click.FloatRange(0.1),
    default=30.0,
    show_default=True,
    metavar="SECONDS",
    help="A body under 100 KB/s for so long is given up and asked for again.",
)
@click.option(
    "--request-timeout",
    type=click.FloatRange(0.1),
    default=10.0,
    show_default=True,
    metavar="SECONDS",
    help="For connecting, headers and metadata.",
)
@click.option("--retries", type=click.IntRange(1), default=6, show_default=True, help="In a row without progress.")
@click.option("--bandwidth-limit", type=click.IntRange(1024), metavar="BYTES", help="Per second, all connections.")
@click.option("--ca-file", metavar="PEM", help="Certificate authorities to trust beside the system's.")
@click.option("--allow-host", multiple=True, metavar="GLOB", help="Only these hosts may be fetched from; repeatable.")
@click.option("--deny-network", multiple=True, metavar="CIDR", help="Addresses never to fetch from; repeatable.")
@click.option("--allow-loopback", is_flag=True, help="Let this machine's own addresses be fetched from.")
@click.option(
    "--status-port", type=click.IntRange(0, 65535), default=0, show_default=True, help="GET /progress; 0: none."
)
@click.option("--lock-wait", type=float, default=20.0, show_default=True, help="Seconds to wait for another writer.")
@click.option(
    "--termination-log",
    type=click.Path(path_type=Path),
    envvar="MOORAGE_TERMINATION_LOG",
    help="Where Kubernetes reads the last words (default: /dev/termination-log if it exists).",
)
@click.option("--manifest-only", is_flag=True, help="Print what would be downloaded.")
@click.option(
    "--inspect", "inspected", metavar="PATH", type=click.Path(path_type=Path), help="Print what a folder holds."
)
def command(**options: Any) -> None:
    """Download files of a repository or a URL, verified, into a folder.

    The last line on stdout is a JSON object; DEST/<commit>/ appears when everything in it is verified.
    """
    _check_usage(options)
    os.umask(0o022)  # servers read the files under another user id
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    sys.exit(_Command(options).run())


class _Command:
    """One call of the command: exactly one result is printed, whoever comes first."""

    def __init__(self, options: dict[str, Any]) -> None:
        self._options = options
        self._once = threading.Lock()
        self._run: Run | None = None
        self._stopped = threading.Event()

    def run(self) -> int:
        """Do it and print the result; returns the exit code."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: self._stopped.set())
        threading.Thread(target=self._leave_when_stopped, name="stopper", daemon=True).start()
        try:
            outcome = self._outcome()
        except StopError:
            outcome = self._interrupted()
        except PortTaken as error:
            raise click.UsageError(f"--status-port: {error}") from None
        except SourceError as error:
            outcome = report.failure(error, self._run.file if self._run else None, self._facts())
        except Exception as error:  # a defect must end with a reason, too
            logging.getLogger("moorage.download").exception("defect")
            outcome = report.result(Reason.INTERNAL_ERROR, f"defect in Moorage: {error!r}", self._facts())
        if self._stopped.is_set() and outcome["reason"] != Reason.COMPLETE:
            outcome = self._interrupted()
        self._once.acquire()
        code = report.publish(outcome, self._options["termination_log"])
        sys.stdout.flush()
        return code

    def _outcome(self) -> dict[str, Any]:
        options = self._options
        if options["inspected"]:
            facts = inspect(options["inspected"], options["revision"], Verify(options["verify"]), self._stopped)
            return report.result(Reason.COMPLETE, f"{len(facts['files'])} files", facts)
        source = _source(options)
        self._run = run = Run(_settings(options), source)
        if self._stopped.is_set():
            raise StopError
        if options["manifest_only"]:
            plan = run.plan()
            files = [
                {"path": f.path, "sizeBytes": f.size, "sha256": f.sha256, "gitSha1": f.git_sha1} for f in plan.files
            ]
            facts = {**facts_of(plan), "bytes": plan.size, "files": files}
            return report.result(Reason.COMPLETE, f"{len(files)} files would be downloaded", facts)
        facts = run.go()
        return report.result(Reason.COMPLETE, f"{len(facts['files'])} files complete and verified", facts)

    def _facts(self) -> dict[str, Any]:
        if not self._run:
            return {}
        progress = self._run.progress
        return {**self._run.facts, "bytes": progress.snapshot()["bytes"]["done"], **progress.counts}

    def _interrupted(self) -> dict[str, Any]:
        return report.result(Reason.INTERRUPTED, "stopped by SIGTERM; what was fetched is kept", self._facts())

    def _leave_when_stopped(self) -> None:
        """Wake whoever waits; if that does not end the run in time, end the process: state on disk is good as it is."""
        self._stopped.wait()
        if self._run:
            self._run.stop()
            self._run.wire.abort()
        time.sleep(_LEAVE_SECONDS)
        if self._once.acquire(blocking=False):
            report.leave_now(self._interrupted(), self._options["termination_log"])


def _check_usage(options: dict[str, Any]) -> None:
    if sum(bool(options[name]) for name in ("repo", "url", "inspected")) != 1:
        raise click.UsageError("exactly one of --repo, --url and --inspect is needed")
    if options["url"] and not options["sha256"]:
        raise click.UsageError("--url needs --sha256")
    if not (options["dest"] or options["manifest_only"] or options["inspected"]):
        raise click.UsageError("--dest is needed")


def _settings(options: dict[str, Any]) -> Settings:
    names = ["connections", "stall_timeout", "request_timeout", "retries", "bandwidth_limit"]
    names += ["ca_file", "status_port", "lock_wait"]
    return Settings(
        dest=options["dest"] or Path(),
        verify=Verify(options["verify"]),
        policy=HostPolicy(options["allow_host"], options["deny_network"], options["allow_loopback"]),
        **{name: options[name] for name in names},
    )


def _source(options: dict[str, Any]) -> Source:
    headers = _headers(options["header_file"])
    if options["url"]:
        return UrlSource(options["url"], options["sha256"], Access(headers=headers), options["file_name"])
    wanted = {name: options[name] for name in ("include", "exclude", "files", "quantization")}
    access = Access(os.environ.get("HF_TOKEN") or None, headers=headers)  # the token is the hub's, never a URL's
    return HubSource(Repository(options["repo"], options["revision"], options["endpoint"]), Selection(**wanted), access)


def _headers(path: Path | None) -> dict[str, str]:
    if path is None:
        return {}
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise source_error(Reason.UNAUTHORIZED, f"header file {path} cannot be read: {error}") from None
    try:
        return parse_headers(text)
    except ValueError as error:
        raise source_error(Reason.UNAUTHORIZED, f"header file {path}: {error}") from None
