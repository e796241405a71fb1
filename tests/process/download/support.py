"""What the download tests share: repositories on disk, certificates."""

import json
import subprocess
from pathlib import Path


def make_repo(
    root: Path, repo: str, files: dict[str, bytes], *, tokens: dict[str, str] | None = None, **config
) -> Path:
    """Write a repository and its part of hub.json; `config` as in e2e/hub/store.py."""
    folder = root / repo
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    path = root / "hub.json"
    hub = json.loads(path.read_text()) if path.exists() else {"tokens": {}, "repos": {}}
    hub["tokens"] |= tokens or {}
    if config:
        hub["repos"].setdefault(repo.split("@", maxsplit=1)[0], {}).update(config)
    path.write_text(json.dumps(hub))
    return folder


def self_signed(folder: Path) -> tuple[str, str]:
    """Certificate and key for 127.0.0.1, made by the openssl command."""
    certificate, key = folder / "cert.pem", folder / "key.pem"
    options = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=127.0.0.1"
    command = ["openssl", *options.split(), "-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run([*command, "-out", str(certificate), "-keyout", str(key)], check=True, capture_output=True)
    return str(certificate), str(key)
