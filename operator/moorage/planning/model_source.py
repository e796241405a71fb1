"""The first steps of a Model: its source becomes a commit and files (Accepted), those a ModelDownload (Downloaded)."""

from pydantic import ValidationError

from moorage import names
from moorage.api.conditions import DownloadCondition, DownloadPhase, Reason, get_condition
from moorage.api.conditions import ModelCondition as C
from moorage.api.download import DownloadSpec, ModelDownload
from moorage.api.model_status import QuantizationStatus, SizeClass, SourceStatus
from moorage.engines.choice import AUTO, ENGINES, mismatch, understood
from moorage.errors import InvalidSpec
from moorage.manifests.common import stamped
from moorage.planning import model_inputs, model_place, node_pools, text
from moorage.planning.download_source import pinned
from moorage.planning.draft import TRUE
from moorage.planning.model_pass import PERSON, ModelPass
from moorage.planning.pods import Trouble
from moorage.planning.types import Answer, Credentials, Manifest, Resolve
from moorage.sources.choice import CONFIG, MAX_FILES, OTHER_WEIGHTS
from moorage.sources.urls import without_query

_BILLION = 10**9
MAX_PATTERNS = 32  # as many as spec.source.huggingFace.exclude takes

# Reasons of a download that is not Ready which its Models repeat; all others are Downloading to them.
_PASSED_ON = PERSON | {
    Reason.PAUSED,
    Reason.CANCELLED,
    Reason.QUEUED,
    Reason.OUTSIDE_WINDOW,
    Reason.WAITING_FOR_VOLUME,
    Reason.VOLUME_IN_USE,
    Reason.IMAGE_PULL_FAILED,
    Reason.UNSCHEDULABLE,
}


def size_class(parameters: int | None) -> SizeClass | None:
    """Tiny below 2 billion parameters, Small below 10, Medium below 40, Large from there."""
    if not parameters:
        return None
    if parameters < 2 * _BILLION:
        return SizeClass.TINY
    if parameters < 10 * _BILLION:
        return SizeClass.SMALL
    return SizeClass.MEDIUM if parameters < 40 * _BILLION else SizeClass.LARGE


def inputs_of(step: ModelPass) -> str:
    """Hash of what the source is resolved from, and of a person's request to resolve it again."""
    asked = step.model.metadata.annotations.get(names.REFRESH_AT, "")
    identity: object = step.model.spec.source.identity()
    if others := _of_other_engines(step):
        identity = [identity, others]
    return names.inputs(identity, asked, step.source.inputs_hash)


def _of_other_engines(step: ModelPass) -> tuple[str, ...]:
    """Patterns of weights for engines that the spec does not want, of a repository that may hold several formats."""
    wanted = step.model.spec.engine.value
    if wanted == AUTO or not step.model.spec.source.hugging_face:
        return ()
    return tuple(engine.weights_pattern for engine in ENGINES if engine.name != wanted)


def _wanted(step: ModelPass) -> Manifest:
    """The source as it is to be resolved."""
    source = step.model.spec.source.dump()
    if others := _of_other_engines(step):
        hub = source["huggingFace"]
        source["huggingFace"] = {**hub, "exclude": [*hub.get("exclude", ()), *others]}
    return source


def accept(step: ModelPass) -> str | None:
    """Resolve the source once; what was found stays in status with the hash of what it was found for."""
    spec, inputs = step.model.spec.source, inputs_of(step)
    if _only_named_otherwise(step):
        step.source.inputs_hash = inputs
    beside = spec.persistent_volume_claim or spec.download_ref  # its download reads the files, not the Model
    if step.source.inputs_hash == inputs:
        known = _understood(step.source) or (_header_again(step) if beside else _read_again(step, inputs))
        step.unread = not known
        if known or (step.serves and model_inputs.stands(step)):
            return _accepted(step)
        if beside:
            text_ = f"ModelDownload {step.source.download_name} reads the header of its files again"
            return step.wait(C.ACCEPTED, text_)
        return _unresolved(step, step.seen.resolved, _again(step, inputs))
    if beside:
        _take(step, inputs, {})
        step.done(C.ACCEPTED, Reason.ACCEPTED, accepted_text(step.source))
        return None
    answer = step.seen.resolved
    if answer is not None and answer.inputs == inputs and answer.value is not None:
        return _accept_facts(step, inputs, answer.value)
    step.ask.append(Resolve(inputs, _wanted(step)))
    return _unresolved(step, answer, inputs)


def _unresolved(step: ModelPass, answer: Answer | None, inputs: str) -> str:
    """Wait for the answer to `inputs`, or say why there is none."""
    spec = step.model.spec.source
    if answer is None or answer.inputs != inputs:
        return step.wait(C.ACCEPTED, "asking the source for its files")
    if spec.secrets or spec.config_maps:
        step.ask.append(Credentials(spec.secrets, spec.config_maps))
    return step.stop(C.ACCEPTED, answer.reason, answer.message)


def _accepted(step: ModelPass) -> str | None:
    """Say that what was resolved still holds; a message where the spec asks for another engine by now."""
    if step.source.format and (why := mismatch(step.model.spec.engine.value, step.source.format)):
        return step.stop(C.ACCEPTED, Reason.UNSUPPORTED_FORMAT, why)
    if step.draft.true(C.ACCEPTED):
        step.draft.confirm(C.ACCEPTED)
    else:
        step.done(C.ACCEPTED, Reason.ACCEPTED, accepted_text(step.source))
    return None


def _only_named_otherwise(step: ModelPass) -> bool:
    """Whether this very spec was resolved, and nobody asks anew: then only another version named its inputs.

    To resolve it again would be another commit, where the spec names a branch.
    """
    seen = step.status.observed_generation == step.model.metadata.generation and step.draft.was_true(C.ACCEPTED)
    return seen and names.acted_upon(step.source.inputs_hash, step.model.metadata.annotations.get(names.REFRESH_AT, ""))


def _understood(source: SourceStatus) -> bool:
    """Whether the header that is kept is one that this version of Moorage can compute with."""
    return understood(source.format, source.header, source.projector)


def _again(step: ModelPass, inputs: str) -> str:
    """What names the question for the headers of the very files that were downloaded."""
    return f"{inputs}@{(step.source.resolved_revision or '')[:12]}"


def _read_again(step: ModelPass, inputs: str) -> bool:
    """Take the header of the files that were resolved, read once more; ask for it, and False, until it is there.

    By the commit that the download is pinned to and by its files: whatever `revision: main` is by now.
    """
    answer, again = step.seen.resolved, _again(step, inputs)
    if answer is None or answer.inputs != again or answer.value is None:
        step.ask.append(Resolve(again, pinned(_wanted(step), step.source.resolved_revision), tuple(step.source.files)))
        return False
    step.source.header = step.source.projector = None
    take_header(step.source, answer.value.get("facts") or {})
    return True


def _header_again(step: ModelPass) -> bool:
    """Take the download's header for one that another version kept; False while the download has to read it again.

    What runs is not planned without a header meanwhile: it would be placed anew for no reason.
    """
    facts = ((step.seen.download or {}).get("status") or {}).get("facts") or {}
    if not understood(facts.get("format"), facts.get("header"), facts.get("projector")):
        return False
    step.source.header, step.source.projector = facts.get("header"), facts.get("projector")
    return True


def _accept_facts(step: ModelPass, inputs: str, value: Manifest) -> str | None:
    facts = value.get("facts") or {}
    if why := mismatch(step.model.spec.engine.value, facts.get("format")):
        return step.stop(C.ACCEPTED, Reason.UNSUPPORTED_FORMAT, why)
    if not facts.get("mainFile"):
        text_ = "the source holds safetensors files but no config.json beside them, which vLLM needs"
        return step.stop(C.ACCEPTED, Reason.UNSUPPORTED_FORMAT, text_)
    if value.get("selected") and len(value["files"]) > MAX_FILES:
        text_ = f"the model lies in {len(value['files'])} files; {MAX_FILES} are the most that can be named and served"
        return step.stop(C.ACCEPTED, Reason.UNSUPPORTED_FORMAT, text_)
    _take(step, inputs, value)
    step.done(C.ACCEPTED, Reason.ACCEPTED, accepted_text(step.source))
    return None


def _take(step: ModelPass, inputs: str, value: Manifest) -> None:
    """A fresh source status; what an earlier source said is gone with it."""
    spec = step.model.spec.source
    files = value.get("files") or []
    source = SourceStatus(
        inputs_hash=inputs,
        resolved_revision=value.get("commit"),
        url=value.get("url"),
        repo=spec.hugging_face.repo if spec.hugging_face else None,
        files=[f["path"] for f in files] if value.get("selected") else [],
        file_count=len(files) or None,
        size_bytes=sum(f["sizeBytes"] for f in files) or None,
        license=value.get("license") or None,
        quantizations=[QuantizationStatus.model_validate(q) for q in value.get("quantizations") or ()],
    )
    step.status.source, step.resolved = source, True
    if step.status.engine:
        step.status.engine.report = None  # of a server of other files
    take_header(source, value.get("facts") or {})
    source.download_name = _download_name(step)


def take_header(source: SourceStatus, facts: Manifest) -> None:
    """Copy what the main file's header says."""
    source.main_file = facts.get("mainFile") or source.main_file
    source.format = facts.get("format") or source.format
    source.architecture = facts.get("architecture") or source.architecture
    source.parameters = facts.get("parameters") or source.parameters
    source.quantization = facts.get("quantization") or source.quantization
    source.context_length = facts.get("contextLength") or source.context_length
    source.tool_call_parser = facts.get("toolCallParser") or source.tool_call_parser
    source.shows = facts.get("shows") or source.shows
    source.license = source.license or facts.get("license")  # what the repository says goes first
    source.projector_file = facts.get("projectorFile") or source.projector_file
    if understood(source.format, facts.get("header"), facts.get("projector")):
        source.header = facts.get("header") or source.header
        source.projector = facts.get("projector") or source.projector
    source.unsized = facts.get("unsized") or (None if source.header else source.unsized)
    source.size_class = size_class(source.parameters)


def accepted_text(source: SourceStatus) -> str:
    """What was accepted, in a sentence."""
    if not source.size_bytes:
        return "the spec is valid"
    parts = [source.quantization, source.architecture, f"{text.size(source.size_bytes)}"]
    what = ", ".join(p for p in parts if p)
    named = source.repo if source.main_file and source.main_file.endswith(CONFIG) else source.main_file
    beside = f", with {source.projector_file} for pictures" if source.projector_file else ""
    return f"{named or source.repo or 'the model'}: {what}{beside}"


def _download_name(step: ModelPass) -> str:
    """The shared download's name: equal for all Models of one content in one kind of storage."""
    spec, source = step.model.spec, step.source
    if spec.source.download_ref:
        return spec.source.download_ref.name
    hub, http, prefilled = spec.source.hugging_face, spec.source.http, spec.source.persistent_volume_claim
    storage = spec.storage.model_dump(include={"claim_name", "size", "storage_class_name", "access_modes"}, mode="json")
    if hub:
        wanted: list[object] = [*source.files] or [hub.include, hub.exclude]
        content = {"hub": hub.endpoint, "repo": hub.repo, "commit": source.resolved_revision, "files": wanted}
        return names.download_name({**content, "storage": storage}, hub.repo.rpartition("/")[2])
    if http:
        content = {"sha256": http.sha256.lower(), "name": http.file_name}
        hint = http.file_name or without_query(http.url).rpartition("/")[2]
        return names.download_name({**content, "storage": storage}, hint)
    assert prefilled is not None
    return names.download_name({"claim": prefilled.identity()}, prefilled.claim_name)


def download(step: ModelPass) -> str | None:
    """See to the ModelDownload of the accepted content, and wait until it is Ready."""
    ref = step.model.spec.source.download_ref
    wanted = None if ref else _spec(step)
    if not ref and wanted is None:
        step.source.inputs_hash = None
        step.wake_in(1.0)
        return step.wait(C.ACCEPTED, "what was kept of the source makes no sense; it is read again")
    raw = step.seen.download
    if raw is not None and raw["metadata"]["name"] != step.source.download_name:
        raw = None  # the snapshot was taken when another content was wanted
    if raw is None:
        if ref:
            text_ = f"there is no ModelDownload {ref.name} in namespace {step.model.metadata.namespace}"
            return step.stop(C.DOWNLOADED, Reason.DOWNLOAD_NOT_FOUND, text_)
        step.apply.append(_manifest(step))
        return step.stop(C.DOWNLOADED, Reason.DOWNLOADING, f"waiting for ModelDownload {step.source.download_name}")
    try:
        found = ModelDownload.read(raw)
    except InvalidSpec as error:
        return step.stop(C.DOWNLOADED, Reason.DOWNLOAD_FAILED, error.message)
    if wanted and _content(found.spec) != _content(wanted):
        text_ = f"ModelDownload {found.metadata.name} holds something else than this Model wants; delete or rename it"
        return step.stop(C.DOWNLOADED, Reason.NAME_TAKEN, text_)
    known = _sized_by(step.source)
    if told := _follow(step, found):
        return told
    # What files in a volume need is known only by now, and a server that runs keeps the place that it was given.
    return model_place.place(step) if _sized_by(step.source) != known and not step.stays else None


def _sized_by(source: SourceStatus) -> tuple[object, ...]:
    """What a need is computed from."""
    return (source.format, source.header, source.projector, source.size_bytes)


def _spec(step: ModelPass) -> DownloadSpec | None:
    """The spec of the ModelDownload; None where what status keeps of the source is none that anybody resolved."""
    try:
        return DownloadSpec.model_validate(_manifest(step)["spec"])
    except ValidationError:
        return None


def _content(spec: DownloadSpec) -> list[object]:
    """What a ModelDownload holds, apart from how it is fetched and kept."""
    hub, http, prefilled = spec.source.hugging_face, spec.source.http, spec.source.persistent_volume_claim
    if hub:
        return [hub.endpoint, hub.repo, hub.revision, sorted(spec.files) or [hub.include, hub.exclude]]
    return [http.sha256.lower(), http.file_name] if http else [prefilled]


def _follow(step: ModelPass, found: ModelDownload) -> str | None:
    status = found.status
    progress = (status.summary.message if status.summary else None) or "waiting for the download to start"
    if status.phase == DownloadPhase.FAILED:
        why = status.last_error.reason if status.last_error else None
        return step.stop(C.DOWNLOADED, why if why and why in PERSON else Reason.DOWNLOAD_FAILED, progress)
    ready = get_condition(status.conditions, DownloadCondition.READY)
    if ready is None or ready.status != TRUE:
        told = ready is not None and ready.reason in _PASSED_ON
        if ready and ready.reason == Reason.UNSCHEDULABLE:  # the files are to lie on the node that is waited for
            node_pools.waiting(step, Trouble(Reason.UNSCHEDULABLE, progress))
        return step.stop(C.DOWNLOADED, ready.reason if ready and told else Reason.DOWNLOADING, progress)
    source = step.source
    source.claim_name, source.path = status.claim_name, status.path
    spec = step.model.spec.source
    known_from_source = bool(spec.hugging_face or spec.http)
    if not (known_from_source and source.resolved_revision):
        source.resolved_revision = status.resolved_revision
    if status.facts:
        take_header(source, status.facts.dump())
    if status.bytes and not (known_from_source and source.size_bytes):
        source.size_bytes = status.bytes.total
    if not source.main_file:
        text_ = f"ModelDownload {found.metadata.name} holds no model that Moorage could serve"
        return step.stop(C.DOWNLOADED, Reason.UNSUPPORTED_FORMAT, text_)
    if why := mismatch(step.model.spec.engine.value, source.format):
        return step.stop(C.DOWNLOADED, Reason.UNSUPPORTED_FORMAT, why)
    step.done(C.DOWNLOADED, Reason.DOWNLOADED, progress)
    return None


def _manifest(step: ModelPass) -> Manifest:
    """The ModelDownload; nobody's child, because several Models share it."""
    spec, source = step.model.spec, step.source
    body: Manifest = {
        k: v for k, v in spec.source.dump().items() if k in ("huggingFace", "http", "persistentVolumeClaim")
    }
    if "huggingFace" in body:
        body["huggingFace"] = {**body["huggingFace"], "revision": source.resolved_revision}
        body["huggingFace"].pop("quantization", None)
        if source.files:
            body["huggingFace"].update(include=[], exclude=[])
        elif not body["huggingFace"].get("include"):
            body["huggingFace"]["exclude"] = [*body["huggingFace"].get("exclude", ()), *OTHER_WEIGHTS][:MAX_PATTERNS]
    wanted: Manifest = {"source": body}
    if source.files and "huggingFace" in body:
        wanted["files"] = list(source.files)
    if "persistentVolumeClaim" not in body:
        wanted["storage"] = spec.storage.dump()
    return stamped(
        {
            "apiVersion": names.API_VERSION,
            "kind": "ModelDownload",
            "metadata": {
                "name": source.download_name,
                "namespace": step.model.metadata.namespace,
                "labels": {names.MANAGED_BY: "moorage"},
            },
            "spec": wanted,
        }
    )
