"""What is read of a model's files, wherever they lie: which they are, and what their headers and templates say."""

import json
import re
from collections.abc import Generator, Sequence
from typing import Any, Final

from moorage.api.capabilities import Capability
from moorage.engines import shown
from moorage.engines.tool_calls import parser_for
from moorage.sizing.errors import HeaderError, UnsizedError
from moorage.sizing.facts import header_facts, transformer_facts
from moorage.sizing.projector import projector_of
from moorage.sizing.reading import FIRST_CHUNK, File, Want, first_reads, read_gguf, read_safetensors
from moorage.sizing.safetensors import SafetensorsHeader, parse_object
from moorage.sizing.transformer import transformer_of
from moorage.sources import RepoFile, formats
from moorage.sources.choice import ModelFiles, model_files

MAX_TEMPLATE_BYTES: Final = 32 << 20
"""A tokenizer_config.json that lists every added token can have megabytes."""

_ESCAPE: Final = re.compile(r"\\u([0-9a-fA-F]{4})")

Reading = Generator[Want, bytes, dict[str, Any]]


def read_facts(files: Sequence[RepoFile], *, whole: bool) -> Reading:
    """`format`, `mainFile`, header facts and `shows` of the one model among `files`; without one only the format.

    Of a GGUF model with a projector `projectorFile` and `projector` too. `shows` are the capabilities that the files
    show; `unsized` says why there is no `header` of a model that an engine may load all the same. `whole`: files must
    be as long as their tensors need, so that a cut upload is found before it is downloaded. Raises HeaderError for
    broken headers, and SourceError as `model_files` does.
    """
    found = model_files(files)
    if found is None:
        kinds = formats(file.path for file in files)
        return {"format": next(iter(kinds))} if kinds else {}
    told = {"format": found.format, "mainFile": found.main}
    weights = [File(file.path, file.size) for file in found.weights]
    if found.config is None:
        header = yield from read_gguf(weights, whole=whole)
        projector, adds = yield from _projector(found.projector, whole=whole)
        return told | header_facts(header) | projector | _shows(shown.in_gguf(header) | adds)
    config, held = yield from read_safetensors(File(found.config.path, found.config.size), weights, whole=whole)
    path, data = yield from _template(found)
    parser = parser_for(unescaped(data))
    beside = f"{found.main.rpartition('/')[0]}/{shown.SENTENCE_TRANSFORMERS}".removeprefix("/")
    sentences = any(file.path == beside for file in files)
    shows = shown.in_transformer(parse_object(config, found.main), shown.template_in(path, data), sentences=sentences)
    return told | _sized(config, held) | ({"toolCallParser": parser} if parser else {}) | _shows(shows)


def _sized(config: bytes, held: SafetensorsHeader) -> dict[str, Any]:
    """Header facts, or why there are none of a model that an engine may know all the same."""
    try:
        return transformer_facts(transformer_of(config, held))
    except UnsizedError as error:
        return {"unsized": str(error)}


def _shows(found: set[Capability]) -> dict[str, Any]:
    """In the order of the list, so that equal files give equal facts."""
    return {"shows": [str(one) for one in Capability if one in found]} if found else {}


def expected_reads(files: Sequence[RepoFile]) -> list[Want]:
    """Reads that `read_facts` is going to make one after the other, so that they can be made together."""
    found = model_files(files)
    if found is None:
        return []
    if found.config is None:
        beside = [found.projector] if found.projector else []
        return [Want(f.path, 0, min(FIRST_CHUNK, f.size)) for f in (*found.weights, *beside) if f.size]
    return first_reads([File(file.path, file.size) for file in found.weights])


def _projector(file: RepoFile | None, *, whole: bool) -> Generator[Want, bytes, tuple[dict[str, Any], set[Capability]]]:
    """`projectorFile` and `projector`, a Projector's JSON, and what it adds; nothing where there is no file."""
    if file is None:
        return {}, set()
    header = yield from read_gguf([File(file.path, file.size)], whole=whole)
    try:
        found = projector_of(header)
    except HeaderError as error:
        raise HeaderError(f"{file.path}: {error}; to serve without it, name it in exclude") from error
    plain = json.dumps(found.to_json(), separators=(",", ":"))
    return {"projectorFile": file.path, "projector": plain}, shown.in_projector(header)


def _template(found: ModelFiles) -> Generator[Want, bytes, tuple[str, bytes]]:
    """The file with the chat template, by name and content; empty where there is none."""
    if found.template is None or not 0 < found.template.size <= MAX_TEMPLATE_BYTES:
        return "", b""
    data = yield Want(found.template.path, 0, found.template.size)
    return found.template.path, data


def unescaped(data: bytes) -> str:
    """`data` as text with JSON's escapes of characters beyond ASCII undone, for templates that stand in JSON."""
    text = data.decode("utf-8", "replace")
    return _ESCAPE.sub(lambda match: chr(int(match[1], 16)), text)


def broken(error: HeaderError, files: Sequence[RepoFile]) -> str:
    """`error` in a sentence that says which kind of file was expected."""
    gguf = "GGUF" in formats(file.path for file in files)
    return f"not a {'GGUF file' if gguf else 'safetensors model'}: {error}"
