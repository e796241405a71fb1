"""What every engine tells the rest of the house, so that nothing above this room knows an engine by its name.

An `Engine` answers five questions about a Model: would it refuse these settings, how much memory does it need on how
many GPUs, how is its container started, what can it do for applications, and what are its defaults.
`moorage.engines.choice` picks one.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from moorage.api.capabilities import Capability, Evidence
from moorage.api.model import ModelSpec
from moorage.sizing.need import MemoryNeed

Reported = Mapping[Capability, bool]
"""What a running server says it can do, and cannot; of what is absent it says nothing."""

MIB = 1024 * 1024
DEFAULT_CONTEXT = 8192
"""Tokens of one request where the spec says nothing and the model was trained for more."""


@dataclass(frozen=True)
class Serving:
    """How requests are served: tokens of one request, requests at once, number format of the cache."""

    context_length: int
    max_sequences: int
    kv_cache_type: str = "f16"


@dataclass(frozen=True)
class Asked:
    """A Model's settings and what is known of its files.

    `header` is what sizing keeps of the files' header (JSON; empty: not known), `projector` the same of a multimodal
    projector that is served beside the model (empty: there is none), `trained_context` the tokens that the model was
    trained for (0: not known), `size_bytes` all files together. `tool_parser` reads the tool calls that the chat
    template shows (empty: none is known). `remote_code_allowed`: programs out of a repository may be run here. `image`
    is the one that the server runs or will run (empty: the pinned version's). `pooled` is what the server is to do
    where it generates nothing (EMBEDDINGS, RERANK).
    """

    spec: ModelSpec
    header: str = ""
    trained_context: int = 0
    size_bytes: int = 0
    projector: str = ""
    tool_parser: str = ""
    remote_code_allowed: bool = False
    image: str = ""
    pooled: Capability | None = None


@dataclass(frozen=True)
class Start:
    """What a container is started with, beside what was asked.

    `model_path` is absolute, inside the container, as is `projector_path` (empty: there is none); `gpus` 0 means CPU
    only, `gpu_memory_mib` is the nominal memory of one (0: not known) and `memory_limit_mib` what a person says is
    needed of it (0: nothing); `cpus` are the whole CPUs the pod may use, None where it was given no share;
    `chat_template` is the path of a template to use instead of the model's own.
    """

    name: str
    model_path: str
    serving: Serving
    gpus: int = 0
    gpu_memory_mib: int = 0
    memory_limit_mib: int = 0
    cpus: int | None = None
    chat_template: str = ""
    projector_path: str = ""


@dataclass(frozen=True)
class Probe:
    """An HTTP probe as Kubernetes knows it; periods and time-outs in seconds."""

    path: str
    period: int
    timeout: int
    failures: int


@dataclass(frozen=True)
class Scratch:
    """A folder the engine may write to, of `size` (a quantity) at most; `memory` keeps it off the disk."""

    path: str
    size: str = "1Gi"
    memory: bool = False


@dataclass(frozen=True)
class EngineContainer:
    """The engine's container: arguments, probes and the port that answers OpenAI requests.

    An empty `command` leaves the image's own entry point. `files` are small texts by file name, which the container
    finds in `names.ENGINE_FILES`. `drain` is a command that runs in the container before the engine is told to stop,
    and ends when it answers nobody any more (`moorage.engines.drain`).
    """

    args: tuple[str, ...]
    port: int
    startup: Probe
    readiness: Probe
    liveness: Probe
    scratch: tuple[Scratch, ...]
    env: dict[str, str]
    drain: tuple[str, ...]
    command: tuple[str, ...] = field(default=())
    files: dict[str, str] = field(default_factory=dict)


class Engine(ABC):
    """One engine.

    name            as `spec.engine` and the gateway's table write it; `title` as people do
    format          of the files it serves, as `status.source.format` writes it; `files` as people do
    weights_pattern  of the names of weight files that only it serves
    loads_folder    it is given the model's folder, not its main file
    default_sequences  requests served at once where the spec says nothing; `most_sequences` the most it may say
    cache_types     number formats of the KV cache, from the least to the greatest loss
    gpu_counts      GPUs of one node that a replica may use; `unsplittable` says which of them a model forbids
    process_mib     host memory of the server itself, beside what the model needs there
    reports_itself  its server tells of its chat template and of what it takes beside text (`GET /props`)
    fills_gpu       it takes all that may be planned of its GPUs, whatever it needs: its arguments depend on their
                    size, and what it holds tells nothing about the next start
    """

    name: ClassVar[str]
    title: ClassVar[str]
    format: ClassVar[str]
    files: ClassVar[str]
    weights_pattern: ClassVar[str]
    loads_folder: ClassVar[bool]
    default_sequences: ClassVar[int]
    most_sequences: ClassVar[int]
    cache_types: ClassVar[tuple[str, ...]]
    gpu_counts: ClassVar[tuple[int, ...]]
    process_mib: ClassVar[int]
    reports_itself: ClassVar[bool]
    fills_gpu: ClassVar[bool]

    @abstractmethod
    def understands(self, header: str, projector: str = "") -> bool:
        """Whether these, stored by some version of Moorage, are what this one computes a need from; empty ones are."""

    @abstractmethod
    def refusal(self, asked: Asked) -> str:
        """Why the engine would refuse these settings, in a sentence that says what to change; empty: it takes them."""

    @abstractmethod
    def unsplittable(self, asked: Asked, gpus: int) -> str:
        """Why the model cannot be shared out over `gpus` GPUs; empty: it can, or its header is not known."""

    @abstractmethod
    def need(self, asked: Asked, serving: Serving, gpus: int) -> MemoryNeed | None:
        """The need on `gpus` GPUs (0: CPU only); None where the header is not known.

        Raises InvalidSpec where the engine would refuse the settings.
        """

    def claim_mib(self, asked: Asked, start: Start) -> int:
        """MiB that must be free on each GPU or the start fails, where that is more than the need; 0: it is the need."""
        return 0

    def requantized(self, asked: Asked, bytes_now: int, bytes_then: int, gpus: int) -> Asked | None:
        """The same model in weight files of `bytes_then` bytes, not `bytes_now`; None where that tells nothing."""
        return None

    @abstractmethod
    def container(self, asked: Asked, start: Start) -> EngineContainer:
        """The container that serves the model."""

    @abstractmethod
    def capabilities(
        self, asked: Asked, shows: frozenset[Capability], reported: Reported
    ) -> dict[Capability, Evidence]:
        """What the engine makes of the capabilities that the files show, with these settings."""


def option(args: Sequence[str], *names: str) -> str | None:
    """The value of the last of the options `names` in `args`, `--name VALUE` or `--name=VALUE`; None: none is there.

    Of one without a value it is what follows, or nothing. `_` counts as `-`, as both engines have it.
    """
    found = None
    for place, arg in enumerate(args):
        name, equals, value = arg.partition("=")
        if (name.replace("_", "-") if name.startswith("--") else name) in names:
            found = value if equals else next(iter(args[place + 1 : place + 2]), "")
    return found


def startup_seconds(size_bytes: int, least: int = 600) -> int:
    """How long a server may take to load `size_bytes` of weights before its start counts as failed.

    `least` for what does not depend on size (by default ten minutes: image start, graph warm-up, a slow node), and a
    second per 10 MiB: slower than any network volume worth serving from.
    """
    return least + size_bytes // (10 * MIB)


def beyond_training(asked: Asked, stretching: tuple[str, ...]) -> str:
    """A sentence where the spec wants a longer context than the model was trained for, else nothing.

    Who stretches it by an argument that begins like one of `stretching` is believed.
    """
    wanted, trained = asked.spec.context_length, asked.trained_context
    if not wanted or not trained or wanted <= trained or any(arg.startswith(stretching) for arg in asked.spec.args):
        return ""
    return (
        f"spec.contextLength {wanted} is more than the {trained} tokens the model was trained for; lower it, or "
        "stretch it with rope scaling in spec.args"
    )
