"""Addresses of a Hugging Face-compatible hub, and questions about origins."""

import re
from dataclasses import dataclass
from urllib.parse import quote, urljoin, urlsplit

from moorage.sources.errors import source_error
from moorage.sources.reasons import Reason

DEFAULT_ENDPOINT = "https://huggingface.co"
_REPO = re.compile(r"^[A-Za-z0-9][\w.-]{0,95}(/[A-Za-z0-9][\w.-]{0,95})?$")
_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True)
class Repository:
    """A repository on a hub: `repo` is `org/name` (or `name`), `revision` a branch, tag or commit."""

    repo: str
    revision: str = "main"
    endpoint: str = DEFAULT_ENDPOINT

    def __post_init__(self) -> None:
        if not _REPO.match(self.repo) or ".." in self.repo:
            shown = self.repo[:200]
            raise source_error(Reason.REPO_NOT_FOUND, f"not found: {shown!r} is no repository's name (org/name)")
        parts = urlsplit(self.endpoint)
        if parts.scheme not in _PORTS or not parts.hostname or "@" in parts.netloc:
            shown = without_query(self.endpoint)
            raise source_error(Reason.NOT_A_HUB, f"not a hub: endpoint {shown[:200]!r} is not a plain http(s) address")

    def revision_url(self) -> str:
        """Answers with the commit of the revision."""
        return f"{self._base}/api/models/{quote(self.repo)}/revision/{quote(self.revision, safe='')}"

    def tree_url(self, commit: str) -> str:
        """First page of the file list of `commit`."""
        return f"{self._base}/api/models/{quote(self.repo)}/tree/{quote(commit, safe='')}?recursive=true&expand=false"

    def file_url(self, commit: str, path: str) -> str:
        """The file itself, perhaps by a redirect to a CDN."""
        return f"{self._base}/{quote(self.repo)}/resolve/{quote(commit, safe='')}/{quote(path)}"

    @property
    def title(self) -> str:
        """The repository, for messages."""
        return f"repository {self.repo} on {self.endpoint}"

    @property
    def _base(self) -> str:
        return self.endpoint.rstrip("/")


def origin(url: str) -> tuple[str, str, int]:
    """Scheme, host and port; raises SourceError(RequestRefused) for what is not an http(s) address."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    if not host or parts.scheme not in _PORTS:
        raise source_error(Reason.REQUEST_REFUSED, f"not an http(s) address: {without_query(url)[:200]}")
    return parts.scheme, host.lower(), port or _PORTS[parts.scheme]


def same_origin(one: str, other: str) -> bool:
    """Whether a token for `one` may be sent to `other`; another port is another origin."""
    return origin(one) == origin(other)


def redirect(url: str, location: str | None) -> str:
    """Where a redirect of `url` leads."""
    if not location:
        raise source_error(Reason.UNEXPECTED_CONTENT, f"{without_query(url)} redirects without saying where to")
    try:
        return urljoin(url, location)
    except ValueError:
        raise source_error(
            Reason.UNEXPECTED_CONTENT, f"unexpected answer: {without_query(url)} redirects to an address that is none"
        ) from None


def next_page(url: str, link: str | None) -> str | None:
    """The page after `url` by a Link header with rel="next"; None on the last one.

    Only the query is taken from the link: mirrors pass on links to the hub they mirror, and the list must come from
    where it began, because the token goes along.
    """
    for part in (link or "").split(","):
        found = re.match(r'\s*<([^>]+)>\s*;.*\brel="?next"?', part)
        if found:
            return urlsplit(url)._replace(query=found[1].partition("#")[0].partition("?")[2]).geturl()
    return None


def without_query(url: str) -> str:
    """`url` for a message: signed links and passwords must not get into logs."""
    bare = re.sub(r"[?#].*$", "", url)
    return re.sub(r"//[^/@]*@", "//", bare)
