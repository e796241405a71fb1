"""What the operator's resolver finds in repositories of a real hub: one model's files, and its facts from ranges."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from e2e.hub import HubServer
from e2e.tinymodels.gguf_file import write_gguf
from e2e.tinymodels.safetensors_dir import write_safetensors
from moorage.control.resolver import Facts, Resolver
from moorage.errors import SourceError
from moorage.hub import HubClient
from moorage.planning.types import Defaults
from moorage.sizing.transformer import TransformerModel
from moorage.sources import HostPolicy

WEIGHTS = 3 << 20


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubServer]:
    root = tmp_path_factory.mktemp("hub")
    for name in ("plain", "mixed"):
        write_safetensors(root / "org" / name, shards=3, weight_bytes=WEIGHTS)
    for name in ("pytorch_model.bin", "README.md", "original/consolidated.00.pth"):
        file = root / "org/plain" / name
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(b"x" * 4096)
    write_gguf(root / "org/mixed/model-F16.gguf")
    (root / "org/choice").mkdir()
    write_gguf(root / "org/choice/model-F16.gguf")
    write_gguf(root / "org/choice/model-Q8_0.gguf")
    for other, size in {"model-Q2_K": 2000, "another-Q3_K": 1000}.items():
        (root / f"org/choice/{other}.gguf").write_bytes(b"x" * size)
    with HubServer(root, lfs_threshold=100_000) as server:
        yield server


async def resolve(hub: HubServer, repo: str, **source: Any) -> Facts:
    async with HubClient(policy=HostPolicy(allow_loopback=True)) as client:
        resolver = Resolver(None, client, Defaults(moorage_image="", llamacpp_image=""))  # type: ignore[arg-type]
        spec = {"huggingFace": {"repo": f"org/{repo}", "endpoint": hub.url, **source}}
        return await resolver.resolve("ns", spec, ())


async def test_a_repository_of_safetensors_is_one_model_and_its_headers(hub: HubServer):
    before = sum(entry["sent"] for entry in hub.log.all())
    found = await resolve(hub, "plain")
    assert found["selected"]
    paths = [file["path"] for file in found["files"]]
    assert {"config.json", "tokenizer.json", "model.safetensors.index.json"} <= set(paths)
    assert sum(path.endswith(".safetensors") for path in paths) == 3
    assert not {"pytorch_model.bin", "README.md", "original/consolidated.00.pth"} & set(paths)
    assert (found["facts"]["format"], found["facts"]["mainFile"]) == ("Safetensors", "config.json")
    model = TransformerModel.from_json(json.loads(found["facts"]["header"]))
    assert 0.98 * WEIGHTS < model.weight_bytes <= WEIGHTS
    assert sum(entry["sent"] for entry in hub.log.all()) - before < WEIGHTS / 2


async def test_the_license_that_the_repository_states_is_found_with_its_commit(hub: HubServer):
    (Path(hub.store.root) / "hub.json").write_text(json.dumps({"repos": {"org/plain": {"tags": ["license:mit"]}}}))
    found = await resolve(hub, "plain")
    assert found["license"] == "mit"
    assert found["facts"]["shows"] == ["chat", "completion", "structured_outputs"]


async def test_patterns_of_a_person_are_taken_at_their_word(hub: HubServer):
    found = await resolve(hub, "plain", include=["*.safetensors", "config.json", "README.md"])
    assert not found["selected"]
    assert "README.md" in {file["path"] for file in found["files"]}
    assert found["facts"]["mainFile"] == "config.json"


async def test_two_formats_need_a_word_and_the_engines_pattern_is_one(hub: HubServer):
    with pytest.raises(SourceError, match=r"spec\.engine") as caught:
        await resolve(hub, "mixed")
    assert caught.value.reason == "AmbiguousSelection"
    assert (await resolve(hub, "mixed", exclude=["*.gguf"]))["facts"]["format"] == "Safetensors"
    assert (await resolve(hub, "mixed", exclude=["*.safetensors"]))["facts"]["format"] == "GGUF"


async def test_a_broken_configuration_is_told(tmp_path: Path):
    write_safetensors(tmp_path / "org/broken")
    (tmp_path / "org/broken/config.json").write_text("{}")
    with HubServer(tmp_path, lfs_threshold=100_000) as hub, pytest.raises(SourceError) as caught:
        await resolve(hub, "broken")
    assert caught.value.reason == "UnexpectedContent"
    assert "not a safetensors model: " in caught.value.message


async def test_an_upload_that_was_cut_is_found_before_the_download(tmp_path: Path):
    (tmp_path / "org/cut").mkdir(parents=True)
    write_gguf(tmp_path / "org/cut/model-F16.gguf")
    size = (tmp_path / "org/cut/model-F16.gguf").stat().st_size
    os.truncate(tmp_path / "org/cut/model-F16.gguf", size // 2)
    with HubServer(tmp_path, lfs_threshold=100_000) as hub, pytest.raises(SourceError) as caught:
        await resolve(hub, "cut")
    assert (caught.value.reason, caught.value.retryable) == ("UnexpectedContent", False)
    assert f"model-F16.gguf: the file has {size // 2:,} bytes, but its tensors end at byte " in caught.value.message


async def test_the_other_quantizations_of_a_model_are_told_with_their_sizes(hub: HubServer):
    found = await resolve(hub, "choice", quantization="Q8_0")
    assert found["quantizations"] == [
        {"name": "Q8_0", "sizeBytes": found["files"][0]["sizeBytes"]},
        {"name": "Q2_K", "sizeBytes": 2000},
    ]
    assert (await resolve(hub, "plain"))["quantizations"] == []
