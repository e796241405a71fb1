"""Why a source could not be read or a download ended: one closed list with exit codes and words for people.

Exit codes of `moorage download`: 10..29 are permanent (a person must change something), 30..49 are worth another try;
Kubernetes' `podFailurePolicy` and the operator read them. docs/reference/downloads.md is generated from this table.
"""

from dataclasses import dataclass
from enum import StrEnum


class Reason(StrEnum):
    """How a download ended, or why a source could not be read."""

    COMPLETE = "Complete"
    REPO_NOT_FOUND = "RepoNotFoundOrPrivate"
    GATED = "GatedAccessDenied"
    ACCESS_DENIED = "AccessDenied"
    UNAUTHORIZED = "Unauthorized"
    REVISION_NOT_FOUND = "RevisionNotFound"
    FILE_NOT_FOUND = "FileNotFound"
    NO_FILES_MATCHED = "NoFilesMatched"
    AMBIGUOUS = "AmbiguousSelection"
    NOT_A_HUB = "NotAHub"
    HOST_NOT_ALLOWED = "HostNotAllowed"
    UNSAFE_NAME = "UnsafeName"
    INSUFFICIENT_STORAGE = "InsufficientStorage"
    CHECKSUM_MISMATCH = "ChecksumMismatch"
    UNEXPECTED_CONTENT = "UnexpectedContent"
    STORAGE_ERROR = "StorageError"
    REQUEST_REFUSED = "RequestRefused"
    CERTIFICATE_ERROR = "CertificateError"
    HUB_UNREACHABLE = "HubUnreachable"
    RATE_LIMITED = "RateLimited"
    NETWORK = "Network"
    TIMEOUT = "Timeout"
    STALLED = "Stalled"
    SIZE_MISMATCH = "SizeMismatch"
    SERVER_ERROR = "ServerError"
    VOLUME_BUSY = "VolumeBusy"
    INTERNAL_ERROR = "InternalError"
    INTERRUPTED = "Interrupted"


@dataclass(frozen=True)
class ReasonFacts:
    """`exit_code` of the process; `meaning` and `remedy` are sentences for a person."""

    exit_code: int
    meaning: str
    remedy: str

    @property
    def retryable(self) -> bool:
        """Whether time alone may mend it."""
        return self.exit_code >= 30

    @property
    def advice(self) -> str:
        """The remedy as the end of a message."""
        return self.remedy[:1].lower() + self.remedy[1:].rstrip(".")


CATALOG: dict[Reason, ReasonFacts] = {
    Reason.COMPLETE: ReasonFacts(0, "All files are there and verified.", "Nothing to do."),
    Reason.REPO_NOT_FOUND: ReasonFacts(
        10,
        "The hub knows no such repository, or it is private and the token may not see it.",
        "Check the spelling of `repo`; for a private repository name a Secret whose token can read it.",
    ),
    Reason.GATED: ReasonFacts(
        11,
        "The repository is gated: its owner grants access person by person.",
        "Accept the conditions on the model's page with the account that owns the token, and name that token's Secret.",
    ),
    Reason.ACCESS_DENIED: ReasonFacts(
        12,
        "The server refused access (403), or the repository is disabled.",
        "Check what the token may read; a disabled repository must be replaced by another.",
    ),
    Reason.UNAUTHORIZED: ReasonFacts(
        13,
        "The server wants a valid token (401): there is none, or it is expired or revoked.",
        "Put a valid token into the Secret; the download is tried again when the Secret changes.",
    ),
    Reason.REVISION_NOT_FOUND: ReasonFacts(
        14, "The repository has no such branch, tag or commit.", "Correct `revision`."
    ),
    Reason.FILE_NOT_FOUND: ReasonFacts(
        15,
        "A file that was asked for by name does not exist at this revision.",
        "Correct the file name or the revision; a split GGUF needs all of its parts.",
    ),
    Reason.NO_FILES_MATCHED: ReasonFacts(
        16,
        "No file of the repository matches the patterns or the quantization; the message lists what there is.",
        "Correct `include`, `exclude` or `quantization`, which are compared with whole paths.",
    ),
    Reason.AMBIGUOUS: ReasonFacts(
        17,
        "Several models of the repository match one quantization; the message lists them.",
        "Choose one with `quantization`, `include` or the exact name of a file.",
    ),
    Reason.NOT_A_HUB: ReasonFacts(
        18,
        "The endpoint answers, but not as a Hugging Face-compatible hub does.",
        "Check `endpoint`: its base address is wanted, without /api or a repository.",
    ),
    Reason.HOST_NOT_ALLOWED: ReasonFacts(
        19,
        "The host, or an address it resolves or redirects to, may not be fetched from (link-local, loopback, cloud"
        " metadata, or not in the list of allowed hosts).",
        "Use another host, or have whoever runs Moorage allow this one.",
    ),
    Reason.UNSAFE_NAME: ReasonFacts(
        20,
        "A file name would leave its folder or cannot be stored (`..`, absolute, control characters, a name twice).",
        "Do not use this repository, or exclude the file.",
    ),
    Reason.INSUFFICIENT_STORAGE: ReasonFacts(
        21,
        "No space left: the volume has less room than the files need. Found before the first byte wherever possible.",
        "Make the claim larger, where its storage class allows that, or free space on the volume.",
    ),
    Reason.CHECKSUM_MISMATCH: ReasonFacts(
        22,
        "Checksum mismatch: the bytes differ from the published sha256, also after the file was fetched once more.",
        "The source or something on the way serves wrong bytes: check the mirror or proxy, or the given sha256.",
    ),
    Reason.UNEXPECTED_CONTENT: ReasonFacts(
        23,
        "The server sent something else than the file, such as a sign-in page, or another part than was asked for.",
        "Look for a proxy or a sign-in page between the cluster and the source.",
    ),
    Reason.STORAGE_ERROR: ReasonFacts(
        24,
        "The volume cannot be written or read: read-only, permission denied, or an I/O error.",
        "Check the claim's access mode, its ownership (fsGroup) and the health of the volume.",
    ),
    Reason.REQUEST_REFUSED: ReasonFacts(
        25,
        "The server refused the request for another reason (4xx).",
        "Look at the status and the server's words; a proxy or firewall on the way may have said them.",
    ),
    Reason.CERTIFICATE_ERROR: ReasonFacts(
        26,
        "The server's TLS certificate cannot be verified.",
        "Name the certificate authority of a private hub with `caBundleRef` (`--ca-file`).",
    ),
    Reason.HUB_UNREACHABLE: ReasonFacts(
        30,
        "The hub cannot be reached: the name does not resolve, the connection is refused, or it keeps failing.",
        "Check the network, DNS and proxy of the cluster; it is tried again.",
    ),
    Reason.RATE_LIMITED: ReasonFacts(
        31,
        "Too many requests: the server limits the rate and said so until the attempts were used up.",
        "It is tried again; a token often raises the limit.",
    ),
    Reason.NETWORK: ReasonFacts(
        32, "Connections broke again and again without progress.", "It is tried again and goes on where it was."
    ),
    Reason.TIMEOUT: ReasonFacts(
        33, "Timed out: the server accepted the request and did not answer.", "It is tried again."
    ),
    Reason.STALLED: ReasonFacts(
        34,
        "The transfer stalled: under 100 KB/s for the whole stall time-out, again and again.",
        "It is tried again and goes on where it was.",
    ),
    Reason.SIZE_MISMATCH: ReasonFacts(
        35, "The server's file has another size than the repository says.", "It is tried again; check the mirror."
    ),
    Reason.SERVER_ERROR: ReasonFacts(
        36, "The server failed (5xx) until the attempts were used up.", "It is tried again."
    ),
    Reason.VOLUME_BUSY: ReasonFacts(
        37, "Another download is writing to the same folder.", "It is tried again; only one may write."
    ),
    Reason.INTERNAL_ERROR: ReasonFacts(49, "A defect of Moorage.", "Please report the message and the log."),
    Reason.INTERRUPTED: ReasonFacts(
        143, "Stopped by SIGTERM; what was fetched is kept.", "Run it again: it goes on where it was."
    ),
}
