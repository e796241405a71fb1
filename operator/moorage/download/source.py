"""What is to be downloaded: the plan of a hub's repository or of a plain URL, made with a few blocking requests."""

import hashlib
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar
from urllib.parse import unquote, urlsplit

from moorage.download.pace import StopError
from moorage.download.retry import Patience
from moorage.download.wire import Response, Wire
from moorage.errors import SourceError
from moorage.sources import (
    Access,
    Headers,
    Reason,
    RepoFile,
    Repository,
    Selection,
    check_names,
    next_page,
    parse_commit,
    parse_tree_page,
    same_origin,
    select,
    source_error,
)
from moorage.sources.tree import MAX_JSON, read_json
from moorage.sources.urls import redirect, without_query

REDIRECTS = (301, 302, 303, 307, 308)
MAX_REDIRECTS = 5
_MAX_FILES = 200_000
_SHA256 = re.compile(r"^[0-9a-f]{64}$")
_T = TypeVar("_T")


@dataclass(frozen=True)
class Plan:
    """The files of one content: `commit` names it (40 hex; for a URL the file's sha256), `urls` says where each is."""

    revision: str
    commit: str
    files: tuple[RepoFile, ...]
    urls: Mapping[str, str] = field(repr=False)

    @property
    def size(self) -> int:
        """Bytes of all files together."""
        return sum(file.size for file in self.files)

    @property
    def digest(self) -> str:
        """sha256 over commit, names, sizes and published checksums: equal digests are equal contents."""
        lines = [self.commit, *(f"{f.path}\0{f.size}\0{f.sha256 or f'git:{f.git_sha1}'}" for f in self.files)]
        return "sha256:" + hashlib.sha256("\n".join(lines).encode()).hexdigest()


class Source(Protocol):
    """Where files come from."""

    @property
    def access(self) -> Access:
        """What its origin wants to see."""

    def plan(self, wire: Wire) -> Plan:
        """Ask the source what there is; raises SourceError."""

    def home(self) -> str:
        """A URL of the origin that may see the token."""

    def describe(self, path: str) -> str:
        """A file, for messages."""

    @property
    def title(self) -> str | None:
        """The repository, for messages; None where there is none."""


@dataclass(frozen=True)
class HubSource:
    """A repository on a Hugging Face-compatible hub, and which of its files are wanted."""

    repository: Repository
    selection: Selection
    access: Access

    def plan(self, wire: Wire) -> Plan:
        """Resolve the revision and list the files; a 40-hex revision is taken as it is."""
        repo = self.repository
        commit = repo.revision if re.fullmatch(r"[0-9a-f]{40}", repo.revision) else self._resolve(wire)
        files = tuple(select(self._tree(wire, commit), self.selection))
        return Plan(repo.revision, commit, files, {f.path: repo.file_url(commit, f.path) for f in files})

    def home(self) -> str:
        """The endpoint."""
        return self.repository.endpoint

    @property
    def title(self) -> str | None:
        """`repository org/name on https://hub`."""
        return self.repository.title

    def describe(self, path: str) -> str:
        """`path of org/name on https://hub`."""
        return f"{path} of {self.repository.repo} on {self.repository.endpoint}"

    def _resolve(self, wire: Wire) -> str:
        repo = self.repository
        what = f"revision {repo.revision} of {repo.repo} on {repo.endpoint}"
        return parse_commit(_json(wire, repo.revision_url(), self.access, what, repo.title)[0])

    def _tree(self, wire: Wire, commit: str) -> list[RepoFile]:
        files: list[RepoFile] = []
        seen: set[str] = set()
        url: str | None = self.repository.tree_url(commit)
        what = f"commit {commit[:12]} of {self.repository.repo} on {self.repository.endpoint}"
        while url:
            if url in seen or len(files) > _MAX_FILES:
                raise source_error(Reason.NOT_A_HUB, f"the file list of {what} does not end")
            seen.add(url)
            answer, headers = _json(wire, url, self.access, what, self.repository.title)
            files += parse_tree_page(answer)
            url = next_page(url, headers.get("Link"))
        return files


@dataclass(frozen=True)
class UrlSource:
    """One file behind a plain URL whose sha256 (64 hex) is known."""

    url: str
    sha256: str
    access: Access
    file_name: str | None = None

    def plan(self, wire: Wire) -> Plan:
        """Learn the size by asking for the first byte."""
        sha256 = self.sha256.lower().removeprefix("sha256:")
        if not _SHA256.match(sha256):
            raise source_error(
                Reason.CHECKSUM_MISMATCH, f"checksum mismatch: {self.sha256[:80]!r} is not a sha256 (64 hex digits)"
            )
        name = self.file_name or unquote(urlsplit(self.url).path).rsplit("/", 1)[-1] or "file"
        check_names([name])
        file = RepoFile(name, self._size(wire), sha256=sha256)
        return Plan("", sha256, (file,), {name: self.url})

    def home(self) -> str:
        """The URL itself."""
        return self.url

    @property
    def title(self) -> str | None:
        """None."""
        return None

    def describe(self, path: str) -> str:
        """The URL without its query, which may be signed."""
        return without_query(self.url)

    def _size(self, wire: Wire) -> int:
        what = without_query(self.url)
        with follow(wire, self.url, self.access, {"Range": "bytes=0-0"}, what) as answer:
            total = re.match(r"^bytes \d+-\d+/(\d{1,19})$", answer.headers.get("Content-Range") or "")
            if answer.status == 206 and total:
                return int(total[1])
            if answer.length is None:
                raise source_error(Reason.UNEXPECTED_CONTENT, f"unexpected answer: {what} does not say its size")
            return answer.length


def follow(
    wire: Wire, url: str, access: Access, headers: Mapping[str, str], what: str, repository: str | None = None
) -> Response:
    """The successful answer (2xx) to a GET, redirects followed; `access` is shown to the origin of `url` only.

    `repository` is named where metadata of one is asked for.
    """
    home = url
    for _ in range(MAX_REDIRECTS + 1):
        sent = {**headers, **(access.sent() if same_origin(home, url) else {})}
        answer = wire.get(url, sent)
        if answer.status < 300:
            return answer
        with answer:
            if answer.status not in REDIRECTS:
                api = repository is not None
                raise wire.refused(answer, what, access=access, api=api, repository=repository)
            url = redirect(url, answer.headers.get("Location"))
    raise source_error(Reason.UNEXPECTED_CONTENT, f"too many redirects: {what}")


def _json(wire: Wire, url: str, access: Access, what: str, repository: str) -> tuple[Any, Headers]:
    with follow(wire, url, access, {}, what, repository) as answer:
        body = answer.read(MAX_JSON)
    try:
        return read_json(body), answer.headers
    except ValueError:
        if not answer.framed and not body.lstrip().startswith(b"<"):
            # Without a length a broken connection looks like the end of headers or body.
            raise source_error(Reason.NETWORK, f"connection broken: {without_query(url)} ended early") from None
        raise source_error(
            Reason.NOT_A_HUB, f"not a Hugging Face-compatible hub: {without_query(url)} sent no JSON"
        ) from None


def persist(wire: Wire, attempts: int, action: Callable[[], _T], failed: Callable[[SourceError], None]) -> _T:
    """Do `action`, again after failures that may pass; raises the last SourceError, or StopError."""
    patience = Patience(attempts)
    while True:
        started = time.monotonic()
        try:
            return action()
        except SourceError as error:
            delay = patience.after(error, started)
            failed(error)
            if wire.stop.wait(delay):
                raise StopError from None
