"""The exceptions Moorage raises, as a tree.

MoorageError
|-- InvalidSpec           a person must change a manifest; never retried on its own
|-- SourceError           the hub or URL said no or could not be reached (reason, retryable)
|-- ApiError              the Kubernetes API refused or failed (status, reason, message)
    |-- NotFound          404
    |-- Conflict          409: changed under us, or the name is taken
    |-- Gone              410: the watch must list again
    |-- Forbidden         403: rights or quota
    |-- Invalid           422: the object is wrong
    |-- Throttled         429, with `retry_after` seconds
    |-- Unavailable       5xx, time-outs and broken connections
"""


class MoorageError(Exception):
    """Root of everything Moorage raises on purpose; `str()` is a sentence for a person."""


class InvalidSpec(MoorageError):
    """A manifest says something that cannot work; the message says what to change."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message


class SourceError(MoorageError):
    """A model source could not be read.

    `reason` is one of the ModelDownload reasons (RepoNotFoundOrPrivate, RateLimited, ...); `retryable` says whether
    time alone can mend it; `retry_after` is in seconds where the server named one.
    """

    def __init__(self, reason: str, message: str, *, retryable: bool, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.retryable = retryable
        self.retry_after = retry_after


class ApiError(MoorageError):
    """The Kubernetes API answered with an error; `status` is the HTTP status, 0 where no answer came."""

    def __init__(self, message: str, *, status: int = 0, reason: str = "", retry_after: float | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.reason = reason
        self.message = message
        self.retry_after = retry_after


class NotFound(ApiError):
    """The object does not exist (404)."""


class Conflict(ApiError):
    """The object changed under us, exists already, or a field belongs to another manager (409)."""


class Gone(ApiError):
    """The resource version is too old; list again (410)."""


class Forbidden(ApiError):
    """Not allowed: missing rights, an exceeded quota or an admission policy (403)."""


class Invalid(ApiError):
    """The API server refused the object as invalid (400, 422)."""


class Throttled(ApiError):
    """Too many requests (429)."""


class Unavailable(ApiError):
    """A 5xx, a time-out or a broken connection: worth another try."""
