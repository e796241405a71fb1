"""The hub's metadata answers: the contract huggingface_hub 2.4 needs, and no more."""

import hashlib
import json
import re
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import parse_qs, quote, urlencode

from e2e.hub.store import Entry, Revision, Store

RESOLVE = re.compile(r"^/((?:datasets/)?[^/]+(?:/[^/]+)?)/resolve/([^/]+)/(.+)$")
API = re.compile(
    r"^/api/(?:models/|(?=datasets/))((?:datasets/)?[^/]+(?:/[^/]+)??)(?:/(revision|tree|refs|paths-info)(?:/([^/]+))?(?:/(.*))?)?$"
)


@dataclass
class Answer:
    """Status, body and headers; `entry` where the answer is a file."""

    status: int
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    entry: Entry | None = None

    @classmethod
    def json(cls, status: int, value: Any, **headers: str) -> "Answer":
        kept = {"Content-Type": "application/json; charset=utf-8", **headers}
        return cls(status, json.dumps(value).encode(), kept)

    @classmethod
    def error(cls, status: int, code: str, message: str, **headers: str) -> "Answer":
        named = {"X-Error-Code": code} if code else {}
        return cls.json(status, {"error": message}, **named, **{"X-Error-Message": message}, **headers)


@dataclass(frozen=True)
class Ask:
    """One request as the API sees it; `user` is filled in from the token."""

    method: str
    path: str
    query: dict[str, str]
    body: bytes
    authorization: str | None
    origin: str
    user: str | None = None


class Api:
    """Answers requests from a store; knows nothing of sockets."""

    def __init__(self, store: Store, page_size: int) -> None:
        self.store, self.page_size = store, page_size

    def answer(self, ask: Ask) -> Answer:
        if ask.path == "/":
            return Answer(200, b"local hub\n", {"Content-Type": "text/plain"})
        token = (ask.authorization or "").removeprefix("Bearer ").strip()
        user = self.store.config.get("tokens", {}).get(token)
        if token and user is None:
            return Answer.error(401, "", "Invalid credentials in Authorization header")
        if ask.path == "/api/whoami-v2":
            who = {"type": "user", "name": user, "auth": {"type": "access_token"}}
            return Answer.json(200, who) if user else Answer.error(401, "", "Invalid username or password.")
        if found := RESOLVE.match(ask.path):
            return self._resolve(*found.groups(), user=user)
        if found := API.match(ask.path):
            return self._meta(replace(ask, user=user), *found.groups())
        return Answer.error(404, "", "Sorry, we can't find the page you are looking for.")

    def entry(self, path: str) -> Entry | None:
        """The file behind a resolve path, with no question of rights."""
        found = RESOLVE.match(path)
        revision = self.store.revision(found[1], found[2]) if found else None
        return revision.entries.get(found[3]) if revision and found else None

    def _refusal(self, repo: str, user: str | None) -> Answer | None:
        config = self.store.repo(repo)
        if config is None or (config.get("private") and user not in config.get("allow", [])):
            return Answer.error(404 if user else 401, "RepoNotFound", "Repository not found")
        if config.get("disabled"):
            return Answer.error(403, "", "Access to this resource is disabled.")
        return None

    def _gate(self, repo: str, user: str | None) -> Answer | None:
        config = self.store.repo(repo) or {}
        if not config.get("gated") or user in config.get("granted", []):
            return None
        message = f"Access to model {repo} is restricted. You must have access to it and be authenticated to access it."
        return Answer.error(403 if user else 401, "GatedRepo", message)

    def _resolve(self, repo: str, name: str, path: str, *, user: str | None) -> Answer:
        refusal = self._refusal(repo, user) or self._gate(repo, user)
        if refusal:
            return refusal
        revision = self.store.revision(repo, name)
        if revision is None:
            return Answer.error(404, "RevisionNotFound", f"Invalid rev id: {name}")
        entry = revision.entries.get(path)
        if entry is None:
            return Answer.error(404, "EntryNotFound", "Entry not found", **{"X-Repo-Commit": revision.commit})
        headers = {"X-Repo-Commit": revision.commit, "ETag": f'"{entry.etag}"'}
        if entry.lfs and (self.store.repo(repo) or {}).get("xet"):
            headers["X-Xet-Hash"] = hashlib.sha256(b"xet" + entry.sha256.encode()).hexdigest()
            headers["Link"] = '<https://hub.invalid/xet-read-token>; rel="xet-auth"'
        return Answer(200, b"", headers, entry)

    def _meta(self, ask: Ask, repo: str, verb: str | None, name: str | None, rest: str | None) -> Answer:
        config, name = self.store.repo(repo) or {}, name or "main"
        refusal = self._refusal(repo, ask.user) or (self._gate(repo, ask.user) if config.get("gatedApi") else None)
        if refusal:
            return refusal
        if verb == "refs":
            return self._refs(repo)
        revision = self.store.revision(repo, name)
        if revision is None:
            return Answer.error(404, "RevisionNotFound", f"Invalid rev id: {name}")
        if verb == "tree":
            return self._tree(ask, repo, revision, (rest or "").strip("/"))
        if verb == "paths-info":
            return self._paths(repo, revision, ask.body)
        return self._info(repo, revision, blobs="blobs" in ask.query)

    def _info(self, repo: str, revision: Revision, *, blobs: bool) -> Answer:
        config = self.store.repo(repo) or {}
        siblings: list[dict[str, Any]] = []
        for entry in revision.entries.values():
            sibling: dict[str, Any] = {"rfilename": entry.path}
            if blobs:
                sibling |= {"size": entry.size, "blobId": entry.oid}
                if entry.lfs:
                    sibling["lfs"] = {"sha256": entry.sha256, "size": entry.size, "pointerSize": 134}
            siblings.append(sibling)
        facts = {"private": bool(config.get("private")), "gated": config.get("gated", False), "disabled": False}
        return Answer.json(
            200,
            {"_id": "0" * 24, "id": repo, "modelId": repo, "sha": revision.commit, "siblings": siblings}
            | {"tags": config.get("tags", []), "downloads": 0, "likes": 0, **facts},
        )

    def _refs(self, repo: str) -> Answer:
        branches = []
        for branch in self.store.branches(repo):
            revision = self.store.revision(repo, branch)
            commit = revision.commit if revision else ""
            branches.append({"name": branch, "ref": f"refs/heads/{branch}", "targetCommit": commit})
        return Answer.json(200, {"branches": branches, "converts": [], "tags": []})

    def _tree(self, ask: Ask, repo: str, revision: Revision, folder: str) -> Answer:
        xet = bool((self.store.repo(repo) or {}).get("xet"))
        items = tree(revision, folder, recursive=ask.query.get("recursive", "").lower() in ("true", "1"), xet=xet)
        if folder and not items:
            return Answer.error(404, "EntryNotFound", f"{folder} does not exist")
        start = int(ask.query.get("cursor", 0))
        page, headers = items[start : start + self.page_size], {}
        if start + self.page_size < len(items):
            more = urlencode({**ask.query, "cursor": start + self.page_size})
            headers["Link"] = f'<{ask.origin}{quote(ask.path)}?{more}>; rel="next"'
        return Answer.json(200, page, **headers)

    def _paths(self, repo: str, revision: Revision, sent: bytes) -> Answer:
        try:
            asked = json.loads(sent).get("paths", [])
        except ValueError:
            asked = parse_qs(sent.decode()).get("paths", [])
        xet = bool((self.store.repo(repo) or {}).get("xet"))
        wanted = [asked] if isinstance(asked, str) else asked
        every = {item["path"]: item for item in tree(revision, "", recursive=True, xet=xet)}
        return Answer.json(200, [every[p] for p in wanted if p in every])


def tree(revision: Revision, folder: str, *, recursive: bool, xet: bool) -> list[dict[str, Any]]:
    """Files and directories below `folder`, sorted by path."""
    prefix, files, folders = f"{folder}/" if folder else "", [], set()
    for entry in revision.entries.values():
        if not entry.path.startswith(prefix):
            continue
        parents = entry.path[len(prefix) :].split("/")[:-1]
        depth = len(parents) if recursive else min(1, len(parents))
        folders.update(prefix + "/".join(parents[: i + 1]) for i in range(depth))
        if recursive or not parents:
            files.append(entry.as_tree(xet=xet))
    made = [{"type": "directory", "path": f, "oid": hashlib.sha1(f.encode()).hexdigest()} for f in folders]
    return sorted(files + made, key=lambda item: item["path"])
