"""The local hub is what huggingface_hub takes for a hub: else our tests would prove nothing."""

import json
import os
import struct
import subprocess
import sys
import urllib.request

import pytest

from e2e.hub import HubServer
from tests.process.download.support import make_repo

CLIENT = """
import json, sys
from huggingface_hub import HfApi, snapshot_download, get_safetensors_metadata
api, folder = HfApi(), sys.argv[1]
info = api.model_info("acme/m", files_metadata=True)
path = snapshot_download("acme/m", local_dir=folder)
verified = api.verify_repo_checksums("acme/m", local_dir=folder)
print(json.dumps({
    "sha": info.sha,
    "sizes": {s.rfilename: s.size for s in info.siblings},
    "lfs": sorted(s.rfilename for s in info.siblings if s.lfs),
    "refs": {b.name: b.target_commit for b in api.list_repo_refs("acme/m").branches},
    "paths": [p.path for p in api.get_paths_info("acme/m", ["config.json", "sub"])],
    "tree": sorted(t.path for t in api.list_repo_tree("acme/m", recursive=True)),
    "top": sorted(t.path for t in api.list_repo_tree("acme/m")),
    "mismatches": len(verified.mismatches), "checked": verified.checked_count,
    "who": api.whoami()["name"],
    "tensors": sorted(get_safetensors_metadata("acme/m").files_metadata["model.safetensors"].tensors),
    "other": api.model_info("acme/m", revision="v2").sha,
}))
"""


def safetensors():
    head = json.dumps({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).encode()
    return struct.pack("<Q", len(head)) + head + bytes(8)


FILES = {"config.json": b"{}", "model.safetensors": safetensors(), "sub/ü b.gguf": b"x" * 3000}


@pytest.fixture
def served(tmp_path):
    make_repo(tmp_path / "root", "acme/m", FILES, tokens={"hf_a": "alice"})
    make_repo(tmp_path / "root", "acme/m@v2", {"other.txt": b"1"})
    with HubServer(tmp_path / "root", page_size=2) as hub:
        yield hub


def test_huggingface_hub_works_with_it(served, tmp_path):
    env = {"HF_ENDPOINT": served.url, "HF_TOKEN": "hf_a", "HF_HOME": str(tmp_path / "home")}
    command = [sys.executable, "-c", CLIENT, str(tmp_path / "got")]
    done = subprocess.run(
        command, env={**os.environ, **env, "HF_HUB_DISABLE_XET": "1"}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["sizes"] == {name: len(data) for name, data in FILES.items()}
    assert told["lfs"] == ["model.safetensors", "sub/ü b.gguf"]
    assert told["refs"] == {"main": told["sha"], "v2": told["other"]}
    assert told["sha"] != told["other"]
    assert told["paths"] == ["config.json", "sub"]
    assert told["tree"] == sorted([*FILES, "sub"])
    assert told["top"] == ["config.json", "model.safetensors", "sub"]
    assert (told["mismatches"], told["checked"], told["who"]) == (0, 3, "alice")
    assert told["tensors"] == ["w"]
    assert {name: (tmp_path / "got" / name).read_bytes() for name in FILES} == FILES


def test_commits_come_from_content(served, tmp_path):
    make_repo(tmp_path / "copy", "acme/m", FILES)
    with HubServer(tmp_path / "copy") as other:
        commits = [commit(hub) for hub in (served, other)]
        assert commits[0] == commits[1]
        make_repo(tmp_path / "copy", "acme/m", {"config.json": b"{ }"})
        assert commit(other) != commits[0]


def commit(hub):
    with urllib.request.urlopen(f"{hub.url}/api/models/acme/m") as answer:
        return json.load(answer)["sha"]


def test_made_files_are_the_same_everywhere(tmp_path):
    made = {"files": {"big.gguf": {"size": 2_500_000, "seed": 3}}}
    make_repo(tmp_path, "acme/m", {}, **made)
    with HubServer(tmp_path) as hub:
        url = f"{hub.url}/acme/m/resolve/main/big.gguf"
        whole = urllib.request.urlopen(url).read()
        request = urllib.request.Request(url, headers={"Range": "bytes=1048570-1048590"})
        with urllib.request.urlopen(request) as answer:
            assert answer.status == 206
            assert answer.read() == whole[1048570:1048591]
        assert hub.store.revision("acme/m", "main").entries["big.gguf"].content.read(5, 10) == whole[5:15]


def test_rules_and_log_over_http(served):
    def control(path, method="GET", body=None):
        data = json.dumps(body).encode() if body is not None else None
        with urllib.request.urlopen(urllib.request.Request(served.url + path, data=data, method=method)) as answer:
            return json.load(answer)

    control("/_rules", "POST", {"kind": "status", "path": "/api/", "status": 418})
    with pytest.raises(urllib.error.HTTPError, match="418"):
        commit(served)
    assert control("/_rules")[0]["hits"] == 1
    assert commit(served)
    assert [r["status"] for r in control("/_log")] == [418, 200]
    control("/_log", "DELETE")
    assert control("/_log") == []
    with pytest.raises(urllib.error.HTTPError, match="400"):
        control("/_rules", "POST", {"kind": "nonsense"})
