"""What a Model can do for applications, as its status tells it, and what its server is started as because of that."""

from moorage.api.capabilities import Capability, CapabilityStatus
from moorage.engines.base import Asked
from moorage.engines.capabilities import Found, Known, capabilities, known_of, pooled, sure
from moorage.planning.model_pass import ModelPass


def tell(step: ModelPass) -> None:
    """Write what is known into the status."""
    found = known(step)
    step.status.capabilities = [CapabilityStatus(name=name, evidence=evidence) for name, evidence in found.items()]


def known(step: ModelPass) -> Found:
    """Each capability with its evidence."""
    spec, source = step.model.spec.source, step.source
    report = step.status.engine.report if step.status.engine else None
    told = {
        Capability.TOOLS: report.tools if report else None,
        Capability.REASONING: report.reasoning if report else None,
        Capability.VISION: report.vision if report else None,
        Capability.AUDIO: report.audio if report else None,
    }
    repository = spec.hugging_face.repo.rpartition("/")[2] if spec.hugging_face else None
    file = (source.main_file or "").rpartition("/")[2]
    facts = Known(
        format=source.format or "",
        shows=known_of(source.shows),
        names=tuple(name for name in (repository, file) if name),
        reported={name: able for name, able in told.items() if able is not None},
    )
    return capabilities(Asked(step.model.spec, tool_parser=source.tool_call_parser or ""), facts)


def pooling(step: ModelPass) -> Capability | None:
    """EMBEDDINGS or RERANK where the server is to do that and generates nothing; a name alone decides nothing."""
    return pooled(sure(known(step)))
