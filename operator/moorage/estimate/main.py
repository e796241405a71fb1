"""The `moorage estimate` command: options in, one JSON object or a table out."""

import asyncio
import json
import re
import sys
from pathlib import Path
from typing import Any

import click

from moorage.errors import InvalidSpec, SourceError
from moorage.estimate.model import Facts, Unsized, from_file, from_folder, from_repository
from moorage.estimate.report import document, table
from moorage.sizing.architectures import ENCODERS
from moorage.sizing.errors import HeaderError
from moorage.sizing.llamacpp import LlamaSettings, llama_need
from moorage.sizing.model import LlamaModel
from moorage.sizing.need import MemoryNeed, need_by_size
from moorage.sizing.transformer import TransformerModel
from moorage.sizing.vllm import VllmSettings, judged, vllm_plan
from moorage.sources import CATALOG, DEFAULT_ENDPOINT, Reason, Repository

UNREADABLE_EXIT = 3
IMPOSSIBLE_EXIT = 4
DEFAULT_CONTEXT = 8192
MAX_TOKENS = 16_777_216
"""Of one request, as in the API."""
MAX_PARALLEL = 1024
ENGINES = ("Auto", "LlamaCpp", "VLLM")


class Layers(click.ParamType[int]):
    """A number of layers, or `all`."""

    name = "N|all"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """-1 stands for all."""
        if isinstance(value, int):
            return value
        if str(value) == "all":
            return -1
        if not str(value).isdecimal() or int(value) > 10_000:
            self.fail(f"{value!r} is neither a number of layers nor 'all'", param, ctx)
        return int(value)


@click.command("estimate")
@click.option("--gguf", type=click.Path(path_type=Path), help="A GGUF file; its header is enough (a sparse file).")
@click.option("--mmproj", type=click.Path(path_type=Path), help="The multimodal projector to serve beside --gguf.")
@click.option("--model-dir", type=click.Path(path_type=Path), help="A folder with one model.")
@click.option("--repo", help="A repository on a hub: ORG/NAME. A token is read from HF_TOKEN.")
@click.option("--file", "include", multiple=True, metavar="GLOB", help="Of the folder or repository; may be repeated.")
@click.option("--revision", default="main", show_default=True, help="Branch, tag or commit of the repository.")
@click.option("--endpoint", default=DEFAULT_ENDPOINT, show_default=True, help="The hub.")
@click.option(
    "--ctx-size",
    type=click.IntRange(1, MAX_TOKENS * MAX_PARALLEL),
    help="llama-server's -c: the whole pool, in tokens.",
)
@click.option("--context-length", type=click.IntRange(1, MAX_TOKENS), help="Tokens of one request; times --parallel.")
@click.option(
    "--parallel", type=click.IntRange(1, MAX_PARALLEL), default=1, show_default=True, help="Requests at once."
)
@click.option("--kv-unified", is_flag=True, help="One pool that all requests share, as in llama-server.")
@click.option("--cache-type-k", help="f16, q8_0, q4_0, ...; vLLM: auto or fp8.")
@click.option("--cache-type-v", help="The same for values; vLLM has one type for both.")
@click.option("--microbatch", type=click.IntRange(1, 1 << 16), help="llama.cpp: -ub. 512; of encoders one request.")
@click.option("--gpu-layers", type=Layers(), default="all", show_default=True, help="llama.cpp: layers on GPUs.")
@click.option("--flash-attention", type=click.Choice(["on", "off"]), default="on", show_default=True)
@click.option("--engine-version", metavar="X.Y", help="vLLM: the version to estimate for; absent: the newest known.")
@click.option("--swa-full", is_flag=True, help="llama.cpp: layers with a window cache the whole context.")
@click.option("--image-max-tokens", type=click.IntRange(1, 1 << 20), help="llama.cpp: of the largest picture.")
@click.option("--gpus", type=click.IntRange(1, 64), default=1, show_default=True, help="GPUs to share the model.")
@click.option("--engine", type=click.Choice(ENGINES, case_sensitive=False), default="Auto", show_default=True)
@click.option("-o", "--output", type=click.Choice(["table", "json"]), default="table", show_default=True)
def command(output: str, engine: str, **options: Any) -> None:
    """Tell how much GPU memory a model needs, from its header alone.

    Reads the header of a local file, of a folder or (by HTTP ranges) of a repository, and no weights: 1 to 16 MB of a
    GGUF file, most of it the vocabulary, and some 100 kB of each safetensors file.
    Without --ctx-size or --context-length the context is what the model was trained for, at most 8192 tokens.

    \b
    Examples
      moorage estimate --gguf Qwen3-8B-Q4_K_M.gguf --context-length 8192 --parallel 4
      moorage estimate --repo Qwen/Qwen3-8B-GGUF --file '*Q4_K_M*' --context-length 16384 --cache-type-k q8_0 \\
        --cache-type-v q8_0 -o json
      moorage estimate --model-dir ./Qwen2.5-7B-Instruct --context-length 16384 --parallel 4 --gpus 2

    \b
    Exit codes
      0       estimated
      2       the options contradict each other
      3       the model cannot be read
      4       the engine would refuse these settings for this model
      10..49  the repository cannot be read; the codes are those of `moorage download`
    """
    _check(options)
    try:
        facts = _facts(options)
        chosen = _engine(engine, facts)
        settings, need = _need(chosen, facts, options)
    except HeaderError as error:
        _end(str(error), UNREADABLE_EXIT)
    except InvalidSpec as error:
        _end(error.message, IMPOSSIBLE_EXIT)
    except SourceError as error:
        hint = "; here that is --file" if error.reason == Reason.AMBIGUOUS else ""
        _end(error.message + hint, CATALOG[Reason(error.reason)].exit_code)
    else:
        found = document(facts, chosen, need)
        click.echo(json.dumps(found, indent=2) if output == "json" else table(facts, chosen, settings, need))


def _check(options: dict[str, Any]) -> None:
    sources = [name for name in ("gguf", "model_dir", "repo") if options[name]]
    if len(sources) != 1:
        raise click.UsageError("give one of --gguf, --model-dir and --repo")
    if options["mmproj"] and not options["gguf"]:
        raise click.UsageError("--mmproj stands beside --gguf; of a folder or repository --file says what is taken")
    if options["include"] and options["gguf"]:
        raise click.UsageError("--file picks from a --repo or a --model-dir; --gguf is one file")
    if options["ctx_size"] and options["context_length"]:
        raise click.UsageError("give --ctx-size (the whole pool) or --context-length (one request), not both")


def _facts(options: dict[str, Any]) -> Facts:
    if options["gguf"]:
        return from_file(options["gguf"], options["mmproj"])
    if options["model_dir"]:
        if not options["model_dir"].is_dir():
            raise HeaderError(f"there is no folder {options['model_dir']}")
        return from_folder(options["model_dir"], options["include"])
    repository = Repository(options["repo"], options["revision"], options["endpoint"])
    return asyncio.run(from_repository(repository, options["include"]))


def _engine(asked: str, facts: Facts) -> str:
    fitting = "LlamaCpp" if isinstance(facts.model, LlamaModel) else "VLLM"
    if asked not in ("Auto", fitting):
        kind = "a GGUF file" if fitting == "LlamaCpp" else "safetensors files"
        raise InvalidSpec("InvalidSpec", f"{facts.name} is {kind}: Moorage serves that with {fitting}, not {asked}")
    return fitting


def _need(engine: str, facts: Facts, options: dict[str, Any]) -> tuple[LlamaSettings | VllmSettings, MemoryNeed]:
    parallel: int = options["parallel"]
    pool = options["ctx_size"]
    trained = min(facts.model.context_length or DEFAULT_CONTEXT, DEFAULT_CONTEXT)
    length = pool // parallel if pool else options["context_length"] or trained
    if isinstance(facts.model, Unsized):
        why = f"{facts.model.why}; counted by the files"
        return _vllm_settings(length, options), need_by_size(facts.model.weight_bytes, options["gpus"], why)
    if isinstance(facts.model, TransformerModel):
        settings = _vllm_settings(length, options)
        return settings, vllm_plan(judged(facts.model, settings.version), settings).need
    if options["engine_version"]:
        raise InvalidSpec("InvalidSpec", "--engine-version is for vLLM; of llama.cpp the pinned build is estimated")
    layers = options["gpu_layers"]
    encodes = facts.model.architecture in ENCODERS  # a text's tokens become one vector, in one micro-batch
    chosen = LlamaSettings(
        ctx_size=pool or length * parallel,
        parallel=parallel,
        kv_unified=options["kv_unified"],
        cache_type_k=options["cache_type_k"] or "f16",
        cache_type_v=options["cache_type_v"] or "f16",
        ubatch_size=options["microbatch"] or (length if encodes else LlamaSettings.ubatch_size),
        flash_attention=options["flash_attention"] == "on",
        gpu_layers=None if layers < 0 else layers,
        gpus=options["gpus"],
        swa_full=options["swa_full"],
        projector=facts.projector,
        image_max_tokens=options["image_max_tokens"] or 0,
    )
    return chosen, llama_need(facts.model, chosen)


def _vllm_settings(context_length: int, options: dict[str, Any]) -> VllmSettings:
    kinds = {options["cache_type_k"] or "auto", options["cache_type_v"] or options["cache_type_k"] or "auto"}
    if len(kinds) > 1:
        raise InvalidSpec("InvalidSpec", "vLLM keeps keys and values in one cache type")
    parallel: int = options["parallel"]
    return VllmSettings(
        context_length=context_length,
        full_sequences=parallel,
        max_sequences=max(parallel, VllmSettings.max_sequences),
        cache_type="auto" if kinds <= {"f16", "bf16"} else kinds.pop(),
        tensor_parallel=options["gpus"],
        version=_version(options["engine_version"]),
    )


def _version(text: str | None) -> tuple[int, int] | None:
    if not text:
        return None
    found = re.fullmatch(r"v?(\d{1,3})\.(\d{1,4})(?:\.\w{1,20})?", text)
    if not found:
        raise InvalidSpec("InvalidSpec", f"--engine-version {text}: a version of vLLM is written 0.18 or v0.18.1")
    return int(found[1]), int(found[2])


def _end(message: str, code: int) -> None:
    click.echo(f"moorage estimate: {message}", err=True)
    sys.exit(code)
