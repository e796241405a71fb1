"""What is read of a model's files: which they are, and what headers, configuration and chat template say."""

import json
import struct
from typing import Any

import pytest

from moorage.engines.facts import read_facts
from moorage.engines.tool_calls import MARKERS, parser_for
from moorage.errors import SourceError
from moorage.sizing.errors import HeaderError
from moorage.sizing.reading import Want, drive
from moorage.sizing.transformer import TransformerModel
from moorage.sources import RepoFile
from moorage.sources.choice import model_files, needed

CONFIG = {
    "architectures": ["LlamaForCausalLM"], "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 320, "max_position_embeddings": 2048,
    "torch_dtype": "bfloat16",
}  # fmt: skip


def weights(values: int = 100) -> bytes:
    entry = json.dumps({"w": {"dtype": "BF16", "shape": [values], "data_offsets": [0, 2 * values]}}).encode()
    return struct.pack("<Q", len(entry)) + entry + bytes(2 * values)


class Folder(dict[str, bytes]):
    """Files by path; remembers how many bytes were read of each."""

    def __init__(self, files: dict[str, bytes]) -> None:
        super().__init__(files)
        self.read: dict[str, int] = {}

    def files(self) -> list[RepoFile]:
        return [RepoFile(path, len(data)) for path, data in self.items()]

    def facts(self) -> dict[str, Any]:
        return drive(read_facts(self.files(), whole=True), self._read)

    def _read(self, want: Want) -> bytes:
        data = self[want.path][want.start : want.start + want.length]
        self.read[want.path] = self.read.get(want.path, 0) + len(data)
        return data


def llama(**more: bytes) -> Folder:
    files = {"config.json": json.dumps(CONFIG).encode(), "model.safetensors": weights(), "README.md": b"# hi"}
    return Folder(files | {name.replace("__", "."): data for name, data in more.items()})


def test_a_safetensors_repository_is_read_without_its_weights():
    folder = llama()
    folder["model.safetensors"] += bytes(1 << 20)
    told = folder.facts()
    assert (told["format"], told["mainFile"], told["architecture"]) == (
        "Safetensors",
        "config.json",
        "LlamaForCausalLM",
    )
    assert (told["contextLength"], told["quantization"], told["layers"]) == (2048, "BF16", 2)
    assert TransformerModel.from_json(json.loads(told["header"])).weight_bytes == 200
    assert folder.read["model.safetensors"] < 200 << 10
    assert "README.md" not in folder.read
    assert len(told["header"]) < 1000


def paths(*names: str) -> list[RepoFile]:
    return [RepoFile(name, 1) for name in names]


SHARDS = [f"model-0000{n}-of-00002.safetensors" for n in (1, 2)]
SERVED = ["config.json", "generation_config.json", "merges.txt", "tokenizer.json", "tokenizer.model"]


@pytest.mark.parametrize(
    ("beside", "taken"),
    [
        (["pytorch_model.bin", "tf_model.h5", "flax_model.msgpack", "training_args.bin", "README.md", "a.png"], []),
        (["consolidated.00.pth", "consolidated.safetensors", "original/params.json"], []),
        (["onnx/model.onnx", "onnx/config.json", "coreml/model.mlmodel"], []),
        (["model.safetensors.index.json", "modeling_qwen.py", "chat_template.jinja"], True),
        (["model.safetensors"], []),  # the same weights in one file
    ],
)
def test_only_what_vllm_reads_is_taken(beside: list[str], taken: Any):
    chosen, selected = needed(paths(*SERVED, *SHARDS, *beside))
    assert selected
    assert [f.path for f in chosen] == [*SERVED, *SHARDS, *(beside if taken is True else taken)]


def test_a_missing_part_is_named():
    with pytest.raises(SourceError, match="part 2 of 2") as caught:
        needed(paths("config.json", SHARDS[0]))
    assert caught.value.reason == "FileNotFound"


def test_weights_that_exist_only_in_the_original_layout_are_taken():
    found = model_files(paths("config.json", "consolidated.safetensors"))
    assert found is not None
    assert [f.path for f in found.weights] == ["consolidated.safetensors"]


def test_a_gguf_beside_safetensors_is_an_answer_and_not_a_guess():
    both = paths("config.json", "model.safetensors", "model-Q4_K_M.gguf")
    with pytest.raises(SourceError, match=r"spec\.engine") as caught:
        needed(both)
    assert caught.value.reason == "AmbiguousSelection"
    assert needed([f for f in both if not f.path.endswith(".gguf")])[1]


def test_a_gguf_repository_may_hold_a_configuration():
    found = model_files(paths("config.json", "model-Q4_K_M.gguf"))
    assert found is not None
    assert (found.format, found.main) == ("GGUF", "model-Q4_K_M.gguf")


def test_several_models_in_folders_are_named():
    with pytest.raises(SourceError, match=r"2 models, in text_encoder/, unet/"):
        needed(paths(*(f"{d}/{n}" for d in ("unet", "text_encoder") for n in ("config.json", "model.safetensors"))))


def test_a_model_in_a_folder_is_served_from_there():
    found, _ = needed(paths("README.md", "fp8/config.json", "fp8/model.safetensors", "fp8/tokenizer.json", "x.json"))
    assert [f.path for f in found] == ["fp8/config.json", "fp8/model.safetensors", "fp8/tokenizer.json"]


def test_safetensors_without_a_configuration_have_a_format_and_no_model():
    assert Folder({"adapter.safetensors": weights()}).facts() == {"format": "Safetensors"}


@pytest.mark.parametrize("config", [b"", b"[1]", b'{"architectures": []}', b"{" * 5000])
def test_a_broken_configuration_is_a_sentence(config: bytes):
    with pytest.raises(HeaderError, match=r"config\.json"):
        llama(config__json=config).facts()


def test_a_configuration_in_other_words_is_no_reason_to_refuse_the_model():
    """llava-1.5-7b-hf: its text_config leaves all that Llama has by default to the library."""
    text = {"architectures": ["LlamaForCausalLM"], "max_position_embeddings": 4096, "vocab_size": 32064}
    config = {"architectures": ["LlavaForConditionalGeneration"], "text_config": text, "vision_config": {}}
    told = llama(config__json=json.dumps(config).encode()).facts()
    assert (told["format"], told["unsized"]) == ("Safetensors", "config.json lacks num_hidden_layers")
    assert "header" not in told


def test_an_upload_that_was_cut_is_found_by_its_header():
    folder = llama()
    folder["model.safetensors"] = folder["model.safetensors"][:-1]
    size = len(folder["model.safetensors"])
    with pytest.raises(HeaderError, match=f"has {size} bytes, but its tensors end at byte {size + 1}: it is cut short"):
        folder.facts()


TEMPLATES = {
    "hermes": '{"name": <function-name>} inside <tool_call></tool_call> XML tags',
    "qwen3_coder": "<tool_call>\n<function=example>\n<parameter=a>",
    "glm45": "<tool_call>{function-name}\n<arg_key>{arg-key-1}</arg_key>",
    "mistral": "{{- '[TOOL_CALLS] [' }}",
    "llama3_json": "{{- '<|python_tag|>' + tool_call.name }}",
    "deepseek_v3": "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>x\n```json",
    "deepseek_v31": "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>x<｜tool▁sep｜>",
    "kimi_k2": "<|tool_calls_section_begin|>",
    "openai": "<|start|>assistant to=functions.x<|channel|>commentary",
    "": "{{ messages[0].content }}",
}


@pytest.mark.parametrize("parser", TEMPLATES)
@pytest.mark.parametrize("file", ["chat_template.jinja", "tokenizer_config.json"])
def test_the_chat_template_tells_how_tool_calls_are_written(parser: str, file: str):
    text = TEMPLATES[parser] if file.endswith("jinja") else json.dumps({"chat_template": TEMPLATES[parser]})
    folder = llama()
    folder[file] = text.encode()
    assert folder.facts().get("toolCallParser", "") == parser


def test_a_template_of_its_own_file_wins_over_an_older_one_in_the_tokenizers_configuration():
    folder = llama()
    folder["tokenizer_config.json"] = b'{"chat_template": "[TOOL_CALLS]"}'
    folder["chat_template.jinja"] = b"<tool_call>"
    assert folder.facts()["toolCallParser"] == "hermes"


def test_every_marker_can_be_reached():
    for markers, parser in MARKERS:
        assert parser_for(" ".join(markers)) == parser
