"""docs/concepts/memory.md tells what the code does: its arithmetic and its commands are run."""

import doctest
import json
import re
import struct
import textwrap
from pathlib import Path

import pytest
from click.testing import CliRunner

from moorage.cli import main
from tests.unit.gguf_bytes import data_bytes, header
from tests.unit.model_shapes import MODELS, Model

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "concepts" / "memory.md").read_text()
BLOCKS = re.findall(r"^ *```(python|console)\n(.*?)^ *```$", PAGE, flags=re.MULTILINE | re.DOTALL)
QWEN25 = {
    "architectures": ["Qwen2ForCausalLM"], "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28,
    "num_attention_heads": 28, "num_key_value_heads": 4, "vocab_size": 152064, "max_position_embeddings": 32768,
    "sliding_window": 131072, "use_sliding_window": False, "torch_dtype": "bfloat16",
}  # fmt: skip
QWEN25_BYTES = 15_231_233_024


def blocks(kind: str) -> list[str]:
    return [textwrap.dedent(body) for found, body in BLOCKS if found == kind]


def test_the_arithmetic_is_right():
    examples = doctest.DocTestParser().get_doctest("\n".join(blocks("python")), {}, "memory.md", "memory.md", 0)
    assert len(examples.examples) > 10
    assert doctest.DocTestRunner(verbose=False).run(examples).failed == 0


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The files that the page names: real headers, no weights."""
    _gguf(tmp_path / "Qwen3-8B-Q4_K_M.gguf", MODELS["qwen3-8b Q4_K_M"], "Qwen3 8B", 40960)
    _gguf(tmp_path / "Llama-3.3-70B-Q4_K_M.gguf", MODELS["llama33-70b Q4_K_M"], "Llama 3.3 70B", 131072)
    folder = tmp_path / "Qwen2.5-7B-Instruct"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(QWEN25))
    entry = {"w": {"dtype": "BF16", "shape": [QWEN25_BYTES // 2], "data_offsets": [0, QWEN25_BYTES]}}
    raw = json.dumps(entry).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(raw)) + raw)
    monkeypatch.chdir(tmp_path)


def _gguf(path: Path, model: Model, name: str, context: int) -> None:
    told = {**model.metadata, "general.name": name, f"{model.arch}.context_length": context}
    raw = header(told, model.tensors)
    with path.open("wb") as file:
        file.write(raw)
        file.truncate(len(raw) + data_bytes(model.tensors))


@pytest.mark.parametrize("block", blocks("console"))
@pytest.mark.usefixtures("models")
def test_the_commands_print_what_the_page_says(block):
    command, printed = block.split("\n", 1)
    assert command.startswith("$ moorage ")
    result = CliRunner().invoke(main, command.removeprefix("$ moorage ").split())
    assert result.stdout == printed, result.output


def test_the_values_in_the_text_are_those_of_the_code():
    from moorage.sizing import llamacpp, vllm

    factor, extra = llamacpp.COMPUTE_SLACK
    assert f"{round(100 * (factor - 1))} % and {extra >> 20} MiB" in PAGE.replace("\n", " ")
    assert f"**Overhead** is {llamacpp.OVERHEAD_MIB} MiB for each GPU, {llamacpp.LARGE_OVERHEAD_MIB} MiB" in PAGE
    newest = vllm.CONSTANTS[max(vllm.CONSTANTS)]
    assert f"the larger of {newest.sampler} x sequences" in PAGE
    assert f"CUDA context {newest.context} GiB" in PAGE
    assert f"others {newest.other} GiB, {newest.other_parallel} GiB on each" in PAGE
    versions = ", ".join(f"{major}.{minor}" for major, minor in sorted(vllm.CONSTANTS))
    assert f"kept for each ({versions})" in PAGE
