import json
from pathlib import Path

import gguf
import numpy as np
import pytest
from safetensors import safe_open

from e2e.tinymodels import write_gguf, write_safetensors
from e2e.tinymodels.__main__ import main
from e2e.tinymodels.hub_folder import write_hub
from e2e.tinymodels.vocabulary import EOS_ID, SPECIAL_TOKENS, build_vocabulary
from e2e.tinymodels.weights import Shape, generate


def gguf_tensors(paths: list[Path]) -> dict[str, tuple[int, ...]]:
    return {t.name: tuple(int(n) for n in t.shape) for path in paths for t in gguf.GGUFReader(path).tensors}


def test_the_same_seed_gives_the_same_file_and_another_seed_another(tmp_path):
    [first], [again], [other] = (
        write_gguf(tmp_path / f"{number}.gguf", seed=seed) for number, seed in enumerate((1, 1, 2))
    )
    assert first.read_bytes() == again.read_bytes()
    assert first.read_bytes() != other.read_bytes()


def test_a_gguf_header_says_what_the_weights_are(tmp_path):
    [path] = write_gguf(tmp_path / "tiny.gguf")
    fields = gguf.GGUFReader(path).fields
    assert fields["general.architecture"].contents() == "llama"
    assert fields["llama.context_length"].contents() == 4096
    assert len(fields["tokenizer.ggml.tokens"].contents()) == gguf_tensors([path])["token_embd.weight"][1]
    assert fields["tokenizer.ggml.eos_token_id"].contents() == EOS_ID
    assert "<|im_start|>" in fields["tokenizer.chat_template"].contents()


@pytest.mark.parametrize("split", [1, 3])
@pytest.mark.parametrize("size", [400_001, 5 * 2**20, 48 * 2**20 + 7])
def test_padding_gives_the_exact_size_by_a_larger_model(tmp_path, size, split):
    paths = write_gguf(tmp_path / "tiny.gguf", pad_to_bytes=size, split=split)
    assert sum(path.stat().st_size for path in paths) == size
    weights = sum(int(t.n_bytes) for path in paths for t in gguf.GGUFReader(path).tensors)
    metadata = sum(int(gguf.GGUFReader(path).data_offset) for path in paths)
    assert 0 <= size - weights - metadata < size / 100


def test_activations_of_a_padded_model_stay_small(tmp_path):
    [path] = write_gguf(tmp_path / "tiny.gguf", pad_to_bytes=64 * 2**20)
    width = gguf.GGUFReader(path).fields["llama.feed_forward_length"].contents()
    assert 512 * width * 4 < 16 * 2**20  # bytes of one activation for a batch of 512 tokens


def test_a_size_below_the_smallest_model_is_refused(tmp_path):
    with pytest.raises(ValueError, match="smallest model"):
        write_gguf(tmp_path / "tiny.gguf", pad_to_bytes=1000)


def test_parts_are_named_and_numbered_as_llama_cpp_expects(tmp_path):
    whole, parts = write_gguf(tmp_path / "whole.gguf"), write_gguf(tmp_path / "tiny.gguf", split=4)
    assert [path.name for path in parts] == [f"tiny-0000{n}-of-00004.gguf" for n in (1, 2, 3, 4)]
    assert gguf_tensors(parts) == gguf_tensors(whole)
    for number, part in enumerate(parts):
        fields = gguf.GGUFReader(part).fields
        assert (fields["split.no"].contents(), fields["split.count"].contents()) == (number, 4)
        assert fields["split.tensors.count"].contents() == len(gguf_tensors(whole))


def test_more_parts_than_tensors_are_refused(tmp_path):
    with pytest.raises(ValueError, match="cannot be split into 99"):
        write_gguf(tmp_path / "tiny.gguf", split=99)
    with pytest.raises(ValueError, match="cannot be split into 99"):
        write_safetensors(tmp_path / "hf", shards=99)


def test_every_byte_and_every_merge_has_its_token():
    vocabulary = build_vocabulary()
    tokens = set(vocabulary.tokens)
    assert len(tokens) == len(vocabulary.tokens) >= len(SPECIAL_TOKENS) + 256
    for merge in vocabulary.merges:
        left, right = merge.split(" ")
        assert {left, right, left + right} <= tokens


def test_only_words_and_the_end_of_a_turn_can_win():
    vocabulary = build_vocabulary()
    shape = Shape(vocab_size=len(vocabulary.tokens))
    weights = dict(generate(shape, vocabulary, seed=3))
    output, embedding = weights["lm_head.weight"], weights["model.embed_tokens.weight"]
    normed = embedding / np.sqrt((embedding**2).mean(axis=1, keepdims=True))
    winners = set((normed @ output.T).argmax(axis=1).tolist())
    assert winners <= vocabulary.word_ids | {EOS_ID}
    assert len(winners) > 10


def test_a_safetensors_folder_is_complete_and_readable_by_others(tmp_path):
    [path] = write_safetensors(tmp_path / "hf")
    config = json.loads((tmp_path / "hf/config.json").read_text())
    tokenizer = json.loads((tmp_path / "hf/tokenizer.json").read_text())
    assert path.name == "model.safetensors"
    assert path.stat().st_mode & 0o777 == 0o644
    assert len(tokenizer["model"]["vocab"]) == config["vocab_size"]
    assert "chat_template" in json.loads((tmp_path / "hf/tokenizer_config.json").read_text())
    with safe_open(path, "np") as weights:
        head = weights.get_slice("lm_head.weight")
        assert head.get_dtype() == "BF16"
        assert head.get_shape() == [config["vocab_size"], config["hidden_size"]]


def test_the_index_names_the_shard_of_every_tensor(tmp_path):
    paths = write_safetensors(tmp_path / "hf", shards=3, weight_bytes=6 << 20)
    index = json.loads((tmp_path / "hf/model.safetensors.index.json").read_text())
    found = {}
    for path in paths:
        with safe_open(path, "np") as weights:
            found |= dict.fromkeys(weights.keys(), path.name)
    assert index["weight_map"] == found
    [whole] = write_safetensors(tmp_path / "whole", weight_bytes=6 << 20)
    header = 8 + int.from_bytes(whole.read_bytes()[:8], "little")
    assert index["metadata"]["total_size"] == whole.stat().st_size - header
    assert 0.99 < index["metadata"]["total_size"] / (6 << 20) <= 1


def test_the_command_line_prints_what_it_wrote(tmp_path, capsys):
    main(["gguf", str(tmp_path / "tiny.gguf"), "--split", "2", "--pad-to-bytes", "1000000"])
    sizes = [int(line.split()[-1]) for line in capsys.readouterr().out.splitlines()]
    assert len(sizes) == 2
    assert sum(sizes) == 1_000_000
    main(["safetensors", str(tmp_path / "hf")])
    assert "model.safetensors" in capsys.readouterr().out


def test_the_hub_folder_has_every_layout(tmp_path):
    sizes = {path.relative_to(tmp_path).as_posix(): path.stat().st_size for path in write_hub(tmp_path)}
    assert sizes["moorage/harbor-llama-GGUF/harbor-llama-F16.gguf"] == 64 << 20
    assert sum(size for name, size in sizes.items() if "fleet-llama-GGUF" in name) == 24 << 20
    assert {name.split("/")[1] for name in sizes} == {path.name for path in (tmp_path / "moorage").iterdir()}
