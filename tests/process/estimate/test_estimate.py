"""`moorage estimate` as a person runs it: files, folders, a hub over real sockets, and everything that is wrong."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from safetensors.numpy import save_file

from e2e.hub import HubServer
from moorage.cli import main
from tests.unit.gguf_bytes import data_bytes, header
from tests.unit.hybrid_shapes import POOLED
from tests.unit.model_shapes import MODELS
from tests.unit.projector_shapes import ENCODERS

QWEN = MODELS["qwen3-8b Q4_K_M"]
EYES = ENCODERS["gemma3-12b"]
CONTRACT = {"weightsMiB", "kvMiB", "computeMiB", "overheadMiB", "marginMiB", "totalMiB", "hostMiB"}
CONFIG = {
    "architectures": ["LlamaForCausalLM"], "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 256, "max_position_embeddings": 2048,
    "torch_dtype": "float16",
}  # fmt: skip


FEW_TENSORS = [("token_embd.weight", (4096, 2048), "Q4_K"), ("blk.0.ffn_down.weight", (12288, 1024), "Q4_K")]
FEW = header(QWEN.metadata, FEW_TENSORS)
"""A header whose weights are small enough for a hub that hashes whole files."""


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["estimate", *map(str, arguments)])


def facts(*arguments: object) -> dict[str, Any]:
    result = run(*arguments, "-o", "json")
    assert result.exit_code == 0, result.stderr
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def sparse(path: Path, raw: bytes, size: int) -> Path:
    """A file that begins with a header and holds nothing else."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.write(raw)
        file.truncate(len(raw) + size)
    return path


@pytest.fixture
def gguf(tmp_path: Path) -> Path:
    return sparse(tmp_path / "qwen3-8b.gguf", QWEN.header, data_bytes(QWEN.tensors))


@pytest.fixture
def parts(tmp_path: Path) -> Path:
    """A GGUF split in two; the first part."""
    half = len(QWEN.tensors) // 2
    for number, tensors in enumerate((QWEN.tensors[:half], QWEN.tensors[half:])):
        split = {"split.no": number, "split.count": 2, "split.tensors.count": len(QWEN.tensors)}
        metadata = {**(QWEN.metadata if number == 0 else {}), **split}
        name = f"model-{number + 1:05d}-of-00002.gguf"
        sparse(tmp_path / "split" / name, header(metadata, tensors), data_bytes(tensors))
    return tmp_path / "split" / "model-00001-of-00002.gguf"


@pytest.fixture
def safetensors(tmp_path: Path) -> Path:
    folder = tmp_path / "tiny-llama"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    for number in (1, 2):
        weights = {f"w{number}": np.zeros((512, 1024), dtype=np.float16)}
        save_file(weights, folder / f"model-0000{number}-of-00002.safetensors")
    return folder


def test_the_contract_of_a_local_file(gguf):
    found = facts("--gguf", gguf, "--ctx-size", 32768, "--parallel", 4, "--kv-unified")
    assert found.keys() >= CONTRACT
    assert all(isinstance(found[key], int) for key in CONTRACT)
    parts = ("weightsMiB", "kvMiB", "computeMiB", "overheadMiB", "marginMiB")
    assert found["totalMiB"] == sum(found[key] for key in parts) == found["perGpuMiB"][0]
    assert (found["weightsMiB"], found["kvMiB"], found["confidence"]) == (4455, 4608, "Exact")
    assert (found["engine"], found["model"]["quantization"]) == ("LlamaCpp", "Q4_K_M")


def test_the_two_ways_to_name_a_context(gguf):
    pool = facts("--gguf", gguf, "--ctx-size", 32768, "--parallel", 4)
    each = facts("--gguf", gguf, "--context-length", 8192, "--parallel", 4)
    assert pool == each
    assert facts("--gguf", gguf) == facts("--gguf", gguf, "--context-length", 8192)


def test_every_option_reaches_the_formula(gguf):
    base = facts("--gguf", gguf, "--ctx-size", 32768)
    small = facts("--gguf", gguf, "--ctx-size", 32768, "--cache-type-k", "q8_0", "--cache-type-v", "q8_0")
    assert (base["kvMiB"], small["kvMiB"]) == (4608, 2448)
    assert facts("--gguf", gguf, "--ctx-size", 32768, "--microbatch", 2048)["computeMiB"] > 3 * base["computeMiB"]
    assert facts("--gguf", gguf, "--ctx-size", 8192, "--flash-attention", "off")["computeMiB"] > base["computeMiB"]
    half = facts("--gguf", gguf, "--ctx-size", 32768, "--gpu-layers", 18)
    assert half["weightsMiB"] < base["weightsMiB"] < half["weightsMiB"] + half["hostMiB"]
    assert facts("--gguf", gguf, "--ctx-size", 32768, "--gpu-layers", "all") == base
    assert len(facts("--gguf", gguf, "--ctx-size", 32768, "--gpus", 2)["perGpuMiB"]) == 2


def test_an_encoder_computes_a_whole_text_at_once_and_gives_no_logits(tmp_path):
    """416 MiB in llama-server's own dry run with `-ub 8192` (tests/oracle/test_pooled_drift.py)."""
    path = tmp_path / "rank.gguf"
    path.write_bytes(POOLED["bge-reranker-v2-m3"].header)
    found = facts("--gguf", path, "--context-length", 8192, "--parallel", 4)
    assert 416 < found["computeMiB"] < 600
    assert found["kvMiB"] == 0
    assert found == facts("--gguf", path, "--ctx-size", 32768, "--parallel", 4)
    assert found == facts("--gguf", path, "--ctx-size", 32768, "--parallel", 4, "--microbatch", 8192)
    assert facts("--gguf", path, "--microbatch", 512)["computeMiB"] < 60


def test_a_header_alone_is_enough(tmp_path, gguf):
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(QWEN.header)
    assert facts("--gguf", cut, "--ctx-size", 8192)["weightsMiB"] == 4455


def test_a_split_file_is_read_whole(gguf, parts):
    whole, split = (facts("--gguf", path, "--ctx-size", 8192) for path in (gguf, parts))
    assert split["weightsMiB"] == whole["weightsMiB"]
    assert split["model"]["parameters"] == whole["model"]["parameters"]
    assert facts("--model-dir", parts.parent, "--ctx-size", 8192) == split


def test_a_folder_of_safetensors_is_for_vllm(safetensors):
    found = facts("--model-dir", safetensors, "--context-length", 1024, "--parallel", 4)
    assert (found["engine"], found["weightsMiB"], found["confidence"]) == ("VLLM", 2, "Bounded")
    assert found["model"]["parameters"] == 2 * 512 * 1024
    assert found["kvMiB"] == 4 * 1024 * 2 * (2 * 16 * 2) * 2 // (1 << 20) == 1
    assert facts("--model-dir", safetensors, "--ctx-size", 4096, "--parallel", 4) == found
    assert len(facts("--model-dir", safetensors, "--gpus", 2)["perGpuMiB"]) == 2


def test_a_projector_is_counted_for_a_file_and_for_a_folder(tmp_path, gguf):
    for name in ("mmproj-BF16.gguf", "mmproj-F16.gguf"):
        sparse(tmp_path / name, EYES.header, data_bytes(EYES.tensors))
    blind = facts("--gguf", gguf, "--ctx-size", 8192)
    seeing = facts("--gguf", gguf, "--ctx-size", 8192, "--mmproj", tmp_path / "mmproj-F16.gguf")
    assert 813 <= seeing["weightsMiB"] - blind["weightsMiB"] <= 814  # 813.5, and each sum is rounded
    assert (blind["confidence"], seeing["confidence"]) == ("Exact", "Bounded")
    assert facts("--model-dir", tmp_path, "--ctx-size", 8192) == seeing
    assert facts("--model-dir", tmp_path, "--file", "qwen*", "--ctx-size", 8192)["totalMiB"] == blind["totalMiB"]
    assert "Projector    mmproj-F16.gguf" in run("--model-dir", tmp_path).stdout
    assert run("--model-dir", tmp_path, "--mmproj", tmp_path / "mmproj-F16.gguf").exit_code == 2
    refused = run("--gguf", gguf, "--mmproj", gguf)
    assert (refused.exit_code, "not a multimodal projector" in refused.stderr) == (3, True)


def test_the_version_of_vllm_decides(gguf, safetensors):
    new = facts("--model-dir", safetensors, "--parallel", 1024)
    old = facts("--model-dir", safetensors, "--parallel", 1024, "--engine-version", "v0.11.2")
    assert old["computeMiB"] > new["computeMiB"]
    assert facts("--model-dir", safetensors, "--parallel", 1024, "--engine-version", "0.32") == new
    assert facts("--model-dir", safetensors, "--engine-version", "0.9")["confidence"] == "Guess"
    for wrong in (("--model-dir", safetensors, "--engine-version", "new"), ("--gguf", gguf, "--engine-version", "1.0")):
        assert run(*wrong).exit_code == 4


def test_a_model_in_unknown_words_counts_by_its_weights(safetensors):
    (safetensors / "config.json").write_text(json.dumps({"architectures": ["LlavaForConditionalGeneration"]}))
    found = facts("--model-dir", safetensors, "--gpus", 2)
    assert (found["engine"], found["confidence"], found["weightsMiB"]) == ("VLLM", "Guess", 2)
    assert found["perGpuMiB"] == [1 + 1 + 2048] * 2
    assert found["reasons"] == ["config.json lacks num_hidden_layers; counted by the files"]
    assert "Guess: config.json lacks" in run("--model-dir", safetensors).stdout


def test_a_table_for_people(gguf, safetensors):
    text = run("--gguf", gguf, "--ctx-size", 32768, "--parallel", 4, "--gpus", 2).stdout
    assert "qwen3 (qwen3, 8.2B, Q4_K_M, trained for 131,072 tokens)" in text
    assert "llama.cpp, 32,768 tokens over 4 slots, f16 cache" in text
    assert "Weights          4,455 MiB     4.4 GiB" in text
    assert "on 2 GPUs, at most" in text
    assert "Confidence   Exact" in text
    assert "vLLM, 1 x 2,048 tokens, auto cache" in run("--model-dir", safetensors).stdout


@pytest.fixture
def hub(tmp_path: Path, gguf: Path, safetensors: Path):
    root = tmp_path / "hub"
    for quantization in ("Q4_K_M", "Q8_0"):
        sparse(root / "org" / "gguf" / f"m-{quantization}.gguf", FEW, 32 + data_bytes(FEW_TENSORS))
    sparse(root / "org" / "cut" / "m.gguf", QWEN.header, 8 << 20)
    (root / "org" / "tiny").parent.mkdir(exist_ok=True)
    safetensors.rename(root / "org" / "tiny")
    with HubServer(root, lfs_threshold=1024) as server:
        yield server


def test_a_repository_is_read_by_ranges(hub, tmp_path):
    found = facts("--repo", "org/gguf", "--file", "*Q4_K_M*", "--endpoint", hub.url, "--ctx-size", 8192)
    assert found == facts("--gguf", sparse(tmp_path / "few.gguf", FEW, 0), "--ctx-size", 8192)
    assert facts("--repo", "org/tiny", "--endpoint", hub.url)["engine"] == "VLLM"
    assert 0 < sum(entry["sent"] for entry in hub.log.all()) < 4 << 20 < data_bytes(FEW_TENSORS), "no weights"


def test_a_token_opens_a_private_repository(hub, monkeypatch):
    (Path(hub.store.root) / "hub.json").write_text(
        json.dumps({"tokens": {"hf_x": "alice"}, "repos": {"org/tiny": {"private": True, "allow": ["alice"]}}})
    )
    refused = run("--repo", "org/tiny", "--endpoint", hub.url)
    assert refused.exit_code in (10, 12, 13)
    monkeypatch.setenv("HF_TOKEN", "hf_x")
    assert facts("--repo", "org/tiny", "--endpoint", hub.url)["weightsMiB"] == 2


def test_what_cannot_be_read_is_a_sentence(tmp_path, gguf, parts, safetensors, hub):
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.gguf").write_text("not a model")
    (tmp_path / "cut.gguf").write_bytes(QWEN.header[:5000])
    parts.with_name("model-00002-of-00002.gguf").unlink()
    cases: list[tuple[list[object], int, str]] = [
        (["--gguf", tmp_path / "none.gguf"], 3, "there is no file"),
        (["--gguf", tmp_path], 3, "there is no file"),
        (["--gguf", tmp_path / "text.gguf"], 3, "text.gguf: "),
        (["--gguf", tmp_path / "cut.gguf"], 3, "ends inside its header"),
        (["--gguf", parts], 3, "there is no file"),
        (["--gguf", parts.with_name("model-00002-of-00002.gguf")], 3, "give the first part"),
        (["--model-dir", tmp_path / "empty"], 3, "is empty"),
        (["--model-dir", tmp_path / "none"], 3, "there is no folder"),
        (["--repo", "org/gguf", "--endpoint", hub.url], 17, "here that is --file"),
        (["--repo", "org/none", "--endpoint", hub.url], 10, "org/none"),
        (["--repo", "org/cut", "--endpoint", hub.url], 3, "m.gguf: the file has 8,"),
        (["--repo", "org/cut", "--endpoint", hub.url], 3, "bytes, but its tensors end at byte 5,021,851,296"),
        (["--gguf", gguf, "--engine", "VLLM"], 4, "is a GGUF file"),
        (["--gguf", gguf, "--cache-type-k", "fp8"], 4, "no cache type 'fp8'"),
        (["--gguf", gguf, "--parallel", "300"], 4, "300 parallel sequences"),
    ]
    for arguments, code, words in cases:
        result = run(*arguments)
        assert (result.exit_code, words in result.stderr) == (code, True), (arguments, result.output)
        assert result.stderr.startswith("moorage estimate: ")
        assert "Traceback" not in result.output


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--gguf", "a", "--repo", "b/c"],
        ["--gguf", "a", "--file", "*"],
        ["--gguf", "a", "--ctx-size", "512", "--context-length", "512"],
        ["--gguf", "a", "--ctx-size", "0"],
        ["--gguf", "a", "--gpu-layers", "some"],
        ["--gguf", "a", "--engine", "Magic"],
    ],
)
def test_contradicting_options_are_a_usage_error(arguments):
    assert run(*arguments).exit_code == 2
