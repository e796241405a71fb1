"""The ModelDownload: files that should lie verified in a volume."""

from enum import StrEnum
from typing import Annotated, ClassVar

from pydantic import Field

from moorage.api.common import (
    DURATION_PATTERN,
    Count,
    Cut,
    Duration,
    Extension,
    HeaderJson,
    Line,
    Quantity,
    RelativePath,
    Resource,
    Rule,
    Sentence,
    SpecPart,
    StatusPart,
    StatusPath,
    StatusWord,
    Time,
)
from moorage.api.conditions import Conditions, DownloadPhase
from moorage.api.source import STORAGE_IS_IMMUTABLE, DownloadSource, Storage


class DownloadState(StrEnum):
    """What a person wants of a download."""

    ACTIVE = "Active"
    PAUSED = "Paused"
    CANCELLED = "Cancelled"


class Verify(StrEnum):
    """How files are checked before they count as there."""

    FULL = "Full"
    SIZE = "Size"
    NONE = "None"


_CLOCK = Annotated[
    str,
    Field(min_length=5, max_length=5),
    Rule(
        "self.matches('^([01][0-9]|2[0-3]):[0-5][0-9]$')",
        "write the time of day as HH:MM, between 00:00 and 23:59, such as 22:00",
    ),
]


class Window(SpecPart):
    """The hours of the day in which to download."""

    rules: ClassVar = (
        Rule("self.start != self.end", "spec.window.start and end are equal; leave window out to download at any time"),
    )

    start: _CLOCK = Field(description="When the window opens, as HH:MM.")
    end: _CLOCK = Field(description="When it closes, as HH:MM; earlier than start means the next day.")
    time_zone: Annotated[
        str,
        Field(min_length=1, max_length=64),
        Rule("self.matches('^[A-Za-z][A-Za-z0-9_+/-]*$')", "write the time zone as in Europe/Berlin or UTC"),
    ] = Field(default="UTC", description="Time zone of start and end, such as Europe/Berlin.")


class Retry(SpecPart):
    """When an attempt counts as failed and when to give up."""

    attempts_without_progress: int = Field(
        default=6, ge=1, le=100, description="Attempts in a row without a new byte of a file before giving up."
    )
    stall_timeout: Annotated[
        Duration,
        Rule(
            f"!self.matches('{DURATION_PATTERN}') "
            "|| (duration(self) >= duration('1s') && duration(self) <= duration('10m'))",
            "spec.retry.stallTimeout must be between 1s and 10m",
        ),
    ] = Field(default="30s", description="A connection that brings no byte for this long is dropped and tried again.")
    deadline: Duration | None = Field(
        default=None,
        description="Give up this long after the first attempt began, pauses included, such as 6h. What was fetched is "
        "kept, and a longer deadline goes on from there. Absent: never.",
    )


class DownloadSpec(SpecPart):
    """What should lie in the volume."""

    rules: ClassVar = (
        Rule(
            "!has(self.files) || self.files.size() == 0 || has(self.source.huggingFace)",
            "spec.files needs source.huggingFace; the other sources name their files themselves",
        ),
        Rule(
            "!has(self.source.persistentVolumeClaim) "
            "|| !(has(self.storage.claimName) || has(self.storage.size) || has(self.storage.storageClassName))",
            "spec.storage has no effect with source.persistentVolumeClaim, because the files lie in a volume already; "
            "remove spec.storage",
        ),
    )

    source: DownloadSource = Field(description="Where the files come from; exactly one of the fields.")
    files: Annotated[list[RelativePath], Field(max_length=256), Extension("x-kubernetes-list-type", "set")] = Field(
        default=[],
        description="Exact paths of the files in the repository. Absent: what the source's include and exclude match.",
    )
    storage: Annotated[Storage, STORAGE_IS_IMMUTABLE] = Field(
        default=Storage(), description="The volume that the files are downloaded to. Cannot be changed later."
    )
    state: DownloadState = Field(
        default=DownloadState.ACTIVE,
        description="Paused keeps the bytes so far and stops. Cancelled stops and discards partial files.",
    )
    connections: int = Field(default=8, ge=1, le=32, description="Connections to the source at once.")
    bandwidth_limit: (
        Annotated[
            Quantity,
            Rule(
                "!isQuantity(self) || quantity(self).compareTo(quantity('64Ki')) >= 0",
                "spec.bandwidthLimit is in bytes per second and must be at least 64Ki, such as 50Mi",
            ),
        ]
        | None
    ) = Field(default=None, description="Bytes per second at most, such as 50Mi. Absent: no limit.")
    verify: Verify = Field(
        default=Verify.FULL, description="Full: size and SHA-256 of every file. Size: size only. None: neither."
    )
    retry: Retry = Field(default=Retry(), description="When an attempt counts as failed and when to give up.")
    priority: int = Field(
        default=0,
        ge=-1000,
        le=1000,
        description="Of downloads that wait for one of the places the chart allows, the highest goes first.",
    )
    window: Window | None = Field(
        default=None, description="Hours of the day in which to download; outside them it pauses. Absent: always."
    )


class DownloadSummary(StatusPart):
    """What the columns of `kubectl get modeldownloads` print."""

    progress: StatusWord | None = Field(default=None, description="Share of the bytes safely on disk, such as 41%.")
    done: StatusWord | None = Field(default=None, description="Bytes on disk and in all, such as 16.0/39.1Gi.")
    speed: StatusWord | None = Field(default=None, description="Speed, such as 212MiB/s.")
    eta: StatusWord | None = Field(default=None, description="Time left, such as 1m50s.")
    verified: StatusWord | None = Field(
        default=None, description="yes once every file was compared with what the source says, else no."
    )
    message: Line | None = Field(default=None, description="What is going on, in a line.")
    revision: StatusWord | None = Field(default=None, description="Short form of the resolved revision.")
    files: StatusWord | None = Field(default=None, description="Complete files and all files, such as 2/3.")


class Progress(StatusPart):
    """How much of how much."""

    total: Count = Field(default=0, description="All.")
    done: Count = Field(default=0, description="Safely on disk.")


class VolumeStatus(StatusPart):
    """The volume behind the claim."""

    access_modes: Annotated[list[StatusWord], Cut(4)] = Field(
        default=[], description="Access modes of the claim; with ReadWriteOnce alone one node at a time can mount it."
    )
    capacity_bytes: Count | None = Field(default=None, description="Its size, once it is bound.")
    node: StatusWord | None = Field(default=None, description="The only node that can mount it, where there is one.")


class Faults(StatusPart):
    """What went wrong on the way and was mended, or ended the attempt."""

    stalls: Count | None = Field(default=None, description="Transfers given up because they had stalled.")
    wrong_bytes: Count | None = Field(
        default=None, description="Verifications that failed because wrong bytes came over the network."
    )
    changed_on_disk: Count | None = Field(
        default=None, description="Verifications that failed because the volume returned other bytes than were written."
    )


class DownloadItem(StatusPart):
    """One file."""

    path: StatusPath = Field(description="Path in the repository.")
    size_bytes: Count | None = Field(default=None, description="Size.")
    sha256: Annotated[str, Cut(64)] | None = Field(default=None, description="SHA-256, 64 hexadecimal digits.")
    verified: bool | None = Field(default=None, description="Whether the file was compared with the source's figures.")


class LastError(StatusPart):
    """What went wrong last; kept until the next success."""

    reason: StatusWord | None = Field(default=None, description="One word of the list of reasons.")
    message: Sentence | None = Field(default=None, description="What happened, as a sentence.")
    file: StatusPath | None = Field(default=None, description="File it happened to.")


class Facts(StatusPart):
    """What the header of the main file says."""

    format: StatusWord | None = Field(default=None, description="GGUF or Safetensors.")
    main_file: StatusPath | None = Field(default=None, description="File that a server is given, or whose folder.")
    projector_file: StatusPath | None = Field(
        default=None, description="Multimodal projector that is served beside the model."
    )
    architecture: StatusWord | None = Field(default=None, description="Architecture, such as qwen3.")
    context_length: Count | None = Field(default=None, description="Tokens the model was trained for.")
    parameters: Count | None = Field(default=None, description="Number of parameters.")
    quantization: StatusWord | None = Field(default=None, description="Quantization of the weights, such as Q4_K_M.")
    license: StatusWord | None = Field(default=None, description="License as the file's header states it.")
    layers: Count | None = Field(default=None, description="Number of layers.")
    tool_call_parser: StatusWord | None = Field(
        default=None, description="vLLM's name for how the chat template writes tool calls."
    )
    shows: Annotated[list[StatusWord], Cut(16)] = Field(
        default=[], description="Capabilities that the files show, whatever the engine makes of them."
    )
    unsized: Sentence | None = Field(default=None, description="Why the header does not tell the memory need.")
    header: HeaderJson | None = Field(
        default=None, description="What the memory need is computed from, as JSON; for Moorage itself."
    )
    projector: HeaderJson | None = Field(default=None, description="The same of the projector; for Moorage itself.")


class DownloadStatus(StatusPart):
    """What lies in the volume, and how far the download is."""

    phase: DownloadPhase | None = Field(default=None, description="Where the download stands, in a word.")
    observed_generation: Count | None = Field(default=None, description="The metadata.generation this status is about.")
    conditions: Conditions = Field(
        default=[], description="Resolved, SpaceAvailable, Downloaded, Verified, Reconciling, Stalled, Ready."
    )
    summary: DownloadSummary | None = Field(default=None, description="What the columns print.")
    resolved_revision: StatusWord | None = Field(default=None, description="Commit, or SHA-256 of a plain URL's file.")
    manifest_digest: StatusWord | None = Field(default=None, description="Digest over paths, sizes and checksums.")
    files: Progress | None = Field(default=None, description="Files.")
    items: Annotated[list[DownloadItem], Cut(64)] = Field(default=[], description="The files, the first 64.")
    bytes: Progress | None = Field(default=None, description="Bytes.")
    percent: Annotated[int, Field(ge=0, le=100)] | None = Field(
        default=None, description="Share done; never goes back."
    )
    bytes_per_second: Count | None = Field(default=None, description="Speed.")
    remaining_seconds: Count | None = Field(default=None, description="Time left.")
    retries: Count | None = Field(default=None, description="Requests that were repeated.")
    faults: Faults | None = Field(default=None, description="What went wrong on the way, by kind.")
    claim_name: StatusWord | None = Field(default=None, description="PersistentVolumeClaim that holds the files.")
    path: StatusPath | None = Field(default=None, description="Folder of the files inside the volume.")
    volume: VolumeStatus | None = Field(default=None, description="The volume behind the claim.")
    node: StatusWord | None = Field(default=None, description="Node of the download pod.")
    verify_request: StatusWord | None = Field(
        default=None, description="The moorage.dev/verify-at annotation that was last carried out."
    )
    used_by: Annotated[list[StatusWord], Cut(64)] = Field(default=[], description="Models that use the files.")
    unused_since: Time | None = Field(default=None, description="Since when no Model uses the files.")
    started_at: Time | None = Field(default=None, description="When the first attempt began.")
    completed_at: Time | None = Field(default=None, description="When all files were there.")
    last_error: LastError | None = Field(default=None, description="What went wrong last.")
    attempts: Count | None = Field(default=None, description="Attempts in a row that failed.")
    next_attempt_at: Time | None = Field(default=None, description="When the next attempt begins.")
    facts: Facts | None = Field(default=None, description="What the header of the main file says.")
    inputs_hash: StatusWord | None = Field(
        default=None, description="Hash of the spec fields that this status was resolved from."
    )


class ModelDownload(Resource):
    """Files of a model in a volume: complete, verified and shared by the Models that use them."""

    spec: DownloadSpec = Field(description="What should lie in the volume.")
    status: DownloadStatus = Field(
        default=DownloadStatus(), description="What lies in the volume, and how far the download is."
    )
