"""Which accelerators one replica of a Model uses."""

from enum import IntEnum, StrEnum
from typing import Annotated, ClassVar

from pydantic import Field

from moorage.api.common import Quantity, Rule, SpecPart


class Vendor(StrEnum):
    """Whose accelerators a Model may use."""

    AUTO = "Auto"
    NVIDIA = "Nvidia"
    AMD = "AMD"
    NONE = "None"


class AcceleratorCount(IntEnum):
    """Accelerators per replica."""

    ONE = 1
    TWO = 2
    FOUR = 4
    EIGHT = 8


class Accelerator(SpecPart):
    """Which accelerators one replica uses."""

    rules: ClassVar = (
        Rule(
            "self.vendor != 'None' || !has(self.count)",
            "spec.accelerator.count has no effect with vendor None, which means CPUs only; remove one of the two",
        ),
        Rule(
            "self.vendor != 'None' || !has(self.memoryPerGPUOverride)",
            "spec.accelerator.memoryPerGPUOverride has no effect with vendor None, which means CPUs only; "
            "remove one of the two",
        ),
    )

    vendor: Vendor = Field(
        default=Vendor.AUTO, description="Auto: whatever fits. None: no accelerator, the model runs on CPUs."
    )
    count: AcceleratorCount | None = Field(
        default=None, description="Accelerators per replica, all on one node: 1, 2, 4 or 8. Absent: as few as fit."
    )
    memory_per_gpu_override: Quantity | None = Field(
        default=None,
        description="Memory needed on each GPU, such as 10Gi, instead of what Moorage computes from the file header.",
    )
    runtime_class_name: Annotated[str, Field(min_length=1, max_length=253)] | None = Field(
        default=None, description="RuntimeClass of the pods, such as nvidia."
    )
