"""What the GPU vendors' programs call things on a node: resources, labels, DRA drivers.

Sources: NVIDIA k8s-device-plugin `internal/lm/resource.go` (GPU feature discovery), ROCm k8s-device-plugin
`cmd/k8s-node-labeller/main.go`, the DRA drivers' published attributes.
"""

import re
from collections.abc import Mapping
from typing import Final

NVIDIA: Final = "Nvidia"
AMD: Final = "AMD"
ORDER: Final = (NVIDIA, AMD)
"""As in the API's `accelerator.vendor`; between equal GPUs the first is taken."""

NVIDIA_GPU: Final = "nvidia.com/gpu"
AMD_GPU: Final = "amd.com/gpu"
MIG_PREFIX: Final = "nvidia.com/mig-"
RESOURCES: Final = {NVIDIA: NVIDIA_GPU, AMD: AMD_GPU}

AMD_MEMORY: Final = "amd.com/gpu.vram"
BETA_AMD_MEMORY: Final = "beta.amd.com/gpu.vram"

PRODUCT_LABELS: Final = (
    "nvidia.com/gpu.product",
    "amd.com/gpu.product-name",
    "cloud.google.com/gke-accelerator",
    "k8s.amazonaws.com/accelerator",
)
SHARING: Final = "nvidia.com/gpu.sharing-strategy"
SHARED: Final = ("time-slicing", "mps")
REPLICAS: Final = "nvidia.com/gpu.replicas"
MIG_STRATEGY: Final = "nvidia.com/mig.strategy"
HOSTNAME: Final = "kubernetes.io/hostname"

DRA_DRIVERS: Final = {"gpu.nvidia.com": NVIDIA, "gpu.amd.com": AMD}
"""DRA driver -> vendor; the drivers name their DeviceClass for whole GPUs as themselves."""


def is_gpu(resource: str) -> bool:
    """Whether an extended resource is one whose pods hold GPU memory that placement gives out."""
    return resource in (NVIDIA_GPU, AMD_GPU) or is_slice(resource)


def is_slice(resource: str) -> bool:
    """Whether the resource is a MIG profile, such as nvidia.com/mig-1g.10gb."""
    return resource.startswith(MIG_PREFIX)


def of_resource(resource: str) -> str:
    """The vendor of an extended resource or DRA driver that `is_gpu` knows."""
    if resource in DRA_DRIVERS:
        return DRA_DRIVERS[resource]
    return AMD if resource == AMD_GPU else NVIDIA


def memory_label(resource: str) -> str:
    """The label that tells the memory of one device of `resource`: a number of MiB, except AMD's."""
    return AMD_MEMORY if resource == AMD_GPU else f"{resource}.memory"


def integer(text: str) -> int | None:
    """A label's number as `Gt` and `Lt` read it (strconv.ParseInt, base 10, 64 bits); None: it is none."""
    if not re.fullmatch(r"-?[0-9]{1,30}", text):
        return None
    number = int(text)
    return number if -(1 << 63) <= number < 1 << 63 else None


def amd_memory_texts(labels: Mapping[str, str]) -> tuple[str, ...]:
    """The sizes AMD's labeller wrote: `amd.com/gpu.vram: 64G`, or its twins `beta.amd.com/gpu.vram.64G: "8"`."""
    if AMD_MEMORY in labels:
        return (labels[AMD_MEMORY],)
    prefix = f"{BETA_AMD_MEMORY}."
    twins = tuple(sorted(key.removeprefix(prefix) for key in labels if key.startswith(prefix)))
    if twins:
        return twins
    return (labels[BETA_AMD_MEMORY],) if BETA_AMD_MEMORY in labels else ()


def sharing(labels: Mapping[str, str]) -> str:
    """How a node's `nvidia.com/gpu` are shared, in words; empty where each is a whole one.

    The memory label is not divided by the replicas, so a shared GPU's memory is nobody's own.
    """
    strategy = labels.get(SHARING, "none")
    replicas = integer(labels.get(REPLICAS, "1")) or 0
    if strategy in SHARED or replicas > 1 or labels.get(PRODUCT_LABELS[0], "").endswith("-SHARED"):
        return f"{strategy if strategy in SHARED else 'shared'}, {max(replicas, 1)} to a GPU"
    return ""


def is_sliced(resource: str, labels: Mapping[str, str]) -> bool:
    """Whether a device of `resource` is a MIG slice: one process can use only one of them."""
    return is_slice(resource) or (resource == NVIDIA_GPU and labels.get(MIG_STRATEGY) == "single" and _mig(labels))


def _mig(labels: Mapping[str, str]) -> bool:
    return "-MIG-" in labels.get(PRODUCT_LABELS[0], "")
