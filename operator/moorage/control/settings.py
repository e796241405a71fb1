"""Settings of the operator process, read once from a YAML file (the chart renders it from its values)."""

from pathlib import Path

import yaml
from pydantic import Field

from moorage import __version__
from moorage.api.common import duration_seconds
from moorage.control.fleet import GPUs
from moorage.control.section import Section
from moorage.control.usage import WINDOW_SECONDS
from moorage.errors import InvalidSpec
from moorage.planning.types import Defaults


class Images(Section):
    """Container images the operator puts into the pods it makes."""

    moorage: str = f"ghcr.io/moorage/moorage:{__version__}"
    llama_cpp: str = f"ghcr.io/moorage/llamacpp-cpu:{__version__}"
    llama_cpp_nvidia: str = "ghcr.io/ggml-org/llama.cpp:server-cuda-b11669"
    llama_cpp_amd: str = "ghcr.io/ggml-org/llama.cpp:server-rocm-b11669"
    vllm: str = "public.ecr.aws/q9t5s3a7/vllm-cpu-release-repo:v0.32.0"
    vllm_nvidia: str = "docker.io/vllm/vllm-openai:v0.32.0"
    vllm_amd: str = "docker.io/vllm/vllm-openai-rocm:v0.32.0"
    pull_secrets: tuple[str, ...] = ()


class Vllm(Section):
    """What vLLM may do here."""

    allow_remote_code: bool = False
    """Whether spec.vllm.trustRemoteCode may run programs that come with a model."""


class Sources(Section):
    """Where models may come from, as seen by the operator's own header reads."""

    hugging_face_endpoint: str = "https://huggingface.co"
    allow_private_hosts: bool = False
    """Whether loopback addresses may be read: only for a hub on this very machine."""
    allowed_hosts: tuple[str, ...] = ()
    """Patterns of hosts that may be fetched from, redirects included; empty: every host."""
    denied_networks: tuple[str, ...] = ()
    """Networks (CIDR) never to fetch from, such as the API server's; metadata addresses are always refused."""


class Proxy(Section):
    """The proxy for reading sources, for the operator and for download Jobs alike."""

    http: str = ""
    https: str = ""
    no_proxy: str = ""

    def env(self) -> tuple[tuple[str, str], ...]:
        """As the environment variables that clients look at."""
        found = {"HTTP_PROXY": self.http, "HTTPS_PROXY": self.https, "NO_PROXY": self.no_proxy}
        return tuple((name, value) for name, value in found.items() if value)


class Downloads(Section):
    """How downloads share the network."""

    max_running: int = Field(default=4, ge=1, le=1000)
    """Download Jobs that run at once in the whole cluster; the others wait by priority, then age."""


class Scaling(Section):
    """How many servers run when."""

    scale_down_after_seconds: int = Field(default=int(WINDOW_SECONDS), ge=1)
    """Load has to be lower for so long before a server goes; more load brings one at once."""
    preemption_cooldown_seconds: int = Field(default=600, ge=0)
    """Who made room for another Model does not drive that one out for so long."""
    max_loaded_models: int | None = Field(default=None, ge=1)
    """Models of one namespace that may be loaded at once, unless the namespace says otherwise; None: any number."""


class Agents(Section):
    """The agents on GPU nodes, and what their reports are used for."""

    namespace: str = ""
    """Where the agents' pods run; empty: there are none. Pods of other namespaces are not believed."""
    max_wait_seconds: int = Field(default=120, ge=0, le=3600)
    """Seconds for which a start waits for GPU memory that is still in use."""


class Settings(Section):
    """All settings, with the defaults that a process beside a cluster gets."""

    images: Images = Field(default_factory=Images)
    vllm: Vllm = Field(default_factory=Vllm)
    sources: Sources = Field(default_factory=Sources)
    proxy: Proxy = Field(default_factory=Proxy)
    downloads: Downloads = Field(default_factory=Downloads)
    gpus: GPUs = Field(default_factory=GPUs)
    scaling: Scaling = Field(default_factory=Scaling)
    agents: Agents = Field(default_factory=Agents)
    workers: int = Field(default=16, ge=1, le=256)
    resync_seconds: int = Field(default=600, ge=30)

    def defaults(self) -> Defaults:
        """The part that planners see."""
        return Defaults(
            moorage_image=self.images.moorage,
            llamacpp_image=self.images.llama_cpp,
            llamacpp_nvidia_image=self.images.llama_cpp_nvidia,
            llamacpp_amd_image=self.images.llama_cpp_amd,
            vllm_image=self.images.vllm,
            vllm_nvidia_image=self.images.vllm_nvidia,
            vllm_amd_image=self.images.vllm_amd,
            remote_code_allowed=self.vllm.allow_remote_code,
            huggingface_endpoint=self.sources.hugging_face_endpoint,
            allowed_hosts=self.sources.allowed_hosts,
            denied_networks=self.sources.denied_networks,
            allow_loopback=self.sources.allow_private_hosts,
            proxy_env=self.proxy.env(),
            image_pull_secrets=self.images.pull_secrets,
            preemption_cooldown_seconds=self.scaling.preemption_cooldown_seconds,
            max_loaded_models=self.scaling.max_loaded_models,
            memory_wait_seconds=self.agents.max_wait_seconds,
            node_deadline_seconds=duration_seconds(self.gpus.node_deadline),
        )


def load(path: Path | None) -> Settings:
    """Settings from the YAML file at `path`, or the defaults; raises InvalidSpec with the file's name and the fault."""
    if path is None:
        return Settings()
    try:
        return Settings.model_validate(yaml.safe_load(path.read_text()) or {})
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise InvalidSpec("InvalidSettings", f"settings file {path}: {error}") from error
