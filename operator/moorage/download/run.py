"""A run from plan to publication."""

import logging
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from moorage.download.board import Board
from moorage.download.content import Content, contents_of
from moorage.download.fetch import Worker
from moorage.download.pace import Bandwidth, StopError
from moorage.download.progress import Phase, Progress, serve
from moorage.download.saver import Saver
from moorage.download.settings import Settings
from moorage.download.source import Plan, Source, persist
from moorage.download.volume import Volume, manifest_name, read_manifest
from moorage.download.walk import Walker, good_file
from moorage.download.wire import Wire
from moorage.errors import SourceError
from moorage.sources import formats

log = logging.getLogger("moorage.download")

_POLL_SECONDS = 0.1
_JOIN_SECONDS = 0.6
_CHECKERS = 4


class Run:
    """One download. `go` does it; `stop` may be called from a signal handler."""

    def __init__(self, settings: Settings, source: Source) -> None:
        self._settings, self._source = settings, source
        self.stopped = threading.Event()
        self.progress = Progress()
        self.wire = Wire(
            self.stopped, policy=settings.policy, ca_file=settings.ca_file, timeout=settings.request_timeout
        )
        self.file: str | None = None
        self.facts: dict[str, Any] = {}
        self._saver: Saver | None = None

    def stop(self) -> None:
        """Let everything end soon."""
        self.stopped.set()

    def plan(self) -> Plan:
        """What the source has; raises SourceError or StopError."""
        plan = persist(
            self.wire,
            self._settings.retries,
            lambda: self._source.plan(self.wire),
            lambda error: self._warn(error, None),
        )
        self.facts = facts_of(plan)
        log.info("%s: %d files, %d bytes", plan.commit, len(plan.files), plan.size)
        return plan

    def go(self) -> dict[str, Any]:
        """Download, verify, publish; returns the facts of the result. Raises SourceError or StopError."""
        if self._settings.status_port:
            serve(self.progress, self._settings.status_port)
        try:
            return self._go()
        except SourceError as error:
            self.progress.ended(error, self.file)
            raise
        finally:
            self.stopped.set()  # whatever still reads or waits is of no use any more

    def _go(self) -> dict[str, Any]:
        plan = self.plan()
        contents = contents_of(plan.files, plan.urls, self._settings.retries)
        self.progress.plan(contents)
        self.progress.phase = Phase.CHECKING
        volume = Volume(self._settings.dest, plan.commit)
        try:
            volume.open(self._settings.lock_wait, self.stopped)
            files = self._fill(volume, plan, contents)
        finally:
            volume.close()
        self.progress.phase = Phase.DONE
        return {**self.facts, "bytes": plan.size, "files": files, **self.progress.counts}

    def _fill(self, volume: Volume, plan: Plan, contents: list[Content]) -> list[dict[str, Any]]:
        """Everything that happens on the volume; the files of the manifest."""
        volume.sweep({content.identity.key for content in contents})
        missing = self._check(volume, contents)
        volume.check_room(missing)
        for content in missing:
            volume.load(content, self._settings.connections)
            volume.allocate(content)
        self.progress.phase = Phase.DOWNLOADING
        self._fetch(volume, missing)
        self.progress.phase = Phase.PUBLISHING
        manifest = manifest_of(plan, contents)
        if not self._published(volume, contents, manifest):
            for content in contents:
                volume.place(content)
            volume.publish(manifest)
        volume.tidy()
        return list(manifest["files"])

    # -- checking -----------------------------------------------------------------------------------------------------

    def _check(self, volume: Volume, contents: list[Content]) -> list[Content]:
        """Look for what is already there; the contents that have to be fetched."""
        pool = ThreadPoolExecutor(_CHECKERS, "check")
        try:
            there = list(pool.map(lambda content: self._there(volume, content), contents))
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
        return [content for content, found in zip(contents, there, strict=True) if not found]

    def _there(self, volume: Volume, content: Content) -> bool:
        verify = self._settings.verify
        content.wanted = [
            path for path in content.paths if not good_file(volume.target / path, content, verify, self.stopped)
        ]
        if content.wanted:
            candidates = volume.candidates(content.identity)
            content.found = next((p for p in candidates if good_file(p, content, verify, self.stopped)), None)
            if content.found is None:
                return False
        content.verified, content.safe = True, content.size
        self.progress.file_done(content)
        return True

    def _published(self, volume: Volume, contents: list[Content], manifest: dict[str, Any]) -> bool:
        """Whether everything lies published already, its manifest included."""
        if any(content.wanted for content in contents) or volume.target != volume.published:
            return False
        name = manifest_name(file["path"] for file in manifest["files"])
        return read_manifest(volume.published / name) == manifest

    # -- fetching -----------------------------------------------------------------------------------------------------

    def _fetch(self, volume: Volume, contents: list[Content]) -> None:
        settings = self._settings
        board = Board(contents, settings.connections, self.stopped, self.progress)
        done = threading.Event()
        saver = self._saver = Saver(board, volume, self.progress, done)
        bandwidth = Bandwidth(settings.bandwidth_limit, self.stopped)
        threads = [threading.Thread(target=saver.run, name="saver", daemon=True)]

        def watch(content: Content) -> None:
            walker = Walker(content, board, volume, settings.verify)
            threading.Thread(target=walker.run, name="walker", daemon=True).start()

        for number in range(min(settings.connections, _most_useful(contents))):
            worker = Worker(
                board=board,
                wire=self.wire,
                volume=volume,
                source=self._source,
                settings=settings,
                bandwidth=bandwidth,
                watch=watch,
            )
            threads.append(threading.Thread(target=worker.run, name=f"fetch-{number}", daemon=True))
        for thread in threads:
            thread.start()
        self._wait(board)
        done.set()
        board.wake()
        self._end(board, threads)

    def _wait(self, board: Board) -> None:
        seen = self.progress.retries
        while not board.wait_ended(_POLL_SECONDS):
            if self.progress.phase is Phase.DOWNLOADING and not board.fetching():
                self.progress.phase = Phase.VERIFYING
            elif self.progress.phase is Phase.VERIFYING and board.fetching():
                self.progress.phase = Phase.DOWNLOADING
            if self.progress.retries != seen:
                seen = self.progress.retries
                log.warning("attempt failed: %s", self.progress.last_error)

    def _end(self, board: Board, threads: list[threading.Thread]) -> None:
        """Wait for the threads, break connections where the run was stopped, save what there is."""
        stopped = self.stopped.is_set()
        if stopped:
            self.wire.abort()
        until = time.monotonic() + _JOIN_SECONDS
        for thread in threads:
            thread.join(max(0.0, until - time.monotonic()))
        if stopped:
            assert self._saver is not None
            try:
                self._saver.save()
            finally:
                self.file = board.failed_file
                if board.error:
                    raise board.error  # it came first
            raise StopError

    def _warn(self, error: SourceError, file: str | None) -> None:
        self.progress.failed(error, file)
        log.warning("attempt failed: %s: %s", error.reason, error.message)


def _most_useful(contents: list[Content]) -> int:
    """No more connections than there are pieces."""
    return max(1, sum(len(c.pieces.pieces) if c.pieces else 1 for c in contents))


def facts_of(plan: Plan) -> dict[str, Any]:
    """What the result says of a plan."""
    return {
        "revision": plan.revision,
        "commit": plan.commit,
        "manifestDigest": plan.digest,
        "formats": formats(file.path for file in plan.files),
    }


def manifest_of(plan: Plan, contents: list[Content]) -> dict[str, Any]:
    """What is written beside the files: the sha256 of each (the hub's word where nothing was hashed), git's hash where
    that is what the hub publishes."""
    sha256 = {path: content.sha256 for content in contents for path in content.paths}
    files = [
        {
            "path": f.path,
            "sizeBytes": f.size,
            "sha256": sha256[f.path],
            **({"gitSha1": f.git_sha1} if f.git_sha1 else {}),
        }
        for f in plan.files
    ]
    return {"moorage": 1, "commit": plan.commit, "manifestDigest": plan.digest, "files": files}
