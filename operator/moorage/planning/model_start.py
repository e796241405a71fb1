"""What a Model's engine is started with, beside what was asked: path, GPUs, CPUs, template."""

from contextlib import suppress

from moorage import names
from moorage.api.common import quantity_bytes
from moorage.engines.base import Start
from moorage.planning.model_engine import engine_of, serving_of
from moorage.planning.model_pass import ModelPass
from moorage.planning.model_place import override_mib
from moorage.planning.types import Manifest


def start_of(step: ModelPass) -> Start:
    """The start on the GPUs that status.placement tells of."""
    spec, placed = step.model.spec, step.status.placement
    template = spec.chat_template.config_map_key_ref.key if spec.chat_template else ""
    return Start(
        name=step.model.metadata.name,
        model_path=model_path(step),
        projector_path=projector_path(step),
        serving=serving_of(step),
        gpus=(placed.count if placed else 0) or 0,
        gpu_memory_mib=(placed.gpu_memory_mib if placed else 0) or 0,
        memory_limit_mib=override_mib(step) or 0,
        cpus=whole_cpus(spec.resources or {}),
        chat_template=f"{names.CHAT_TEMPLATE_MOUNT}/{template}" if template else "",
    )


def model_path(step: ModelPass) -> str:
    """Absolute path of the main file inside the container, or of its folder where the engine loads that."""
    folder, file = (step.source.path or "").strip("/"), step.source.main_file or ""
    if engine_of(step).loads_folder:
        file = file.rpartition("/")[0]
        return "/".join(part for part in (names.MODEL_MOUNT, folder, file) if part)
    if f"/{folder}".endswith(f"/{file}"):  # a pre-filled claim whose path names the file itself
        return f"{names.MODEL_MOUNT}/{folder}"
    return "/".join(part for part in (names.MODEL_MOUNT, folder, file) if part)


def projector_path(step: ModelPass) -> str:
    """Absolute path of the multimodal projector inside the container; empty where there is none."""
    folder, file = (step.source.path or "").strip("/"), step.source.projector_file or ""
    return "/".join(part for part in (names.MODEL_MOUNT, folder, file) if part) if file else ""


def whole_cpus(resources: Manifest) -> int | None:
    """Whole CPUs that `resources` (core/v1) give a container: its limit, else its request, at least 1; None: unsaid."""
    for kind in ("limits", "requests"):
        text_ = str(resources.get(kind, {}).get("cpu", ""))
        with suppress(ValueError):
            return max(_whole(text_), 1)
    return None


def _whole(cpus: str) -> int:
    if cpus.endswith("m"):
        return int(float(cpus[:-1])) // 1000
    return int(float(cpus)) if cpus[-1:].isdigit() else quantity_bytes(cpus)
