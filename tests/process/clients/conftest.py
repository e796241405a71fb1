"""The clients' own environment, made once into the cache, and the engines that stand behind the gateway."""

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from e2e.tinymodels.reranker import write_reranker
from images.build import cache_folder
from tests.process.clients.small_talk import SMALL_TALK
from tests.support.llamaserver import llama_server
from tests.support.table_model import write_table_model

ROOT = Path(__file__).resolve().parents[3]
LOCK = ROOT / "requirements/clients.txt"


@pytest.fixture(scope="session")
def clients_python() -> Path:
    """The Python of an environment with exactly the locked clients; made anew when the lock has changed."""
    cache = cache_folder(dict(os.environ)).parent / "clients"
    cache.mkdir(parents=True, exist_ok=True)
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    made = cache / f"{version}-{hashlib.sha256(LOCK.read_bytes()).hexdigest()[:12]}"
    with (cache / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (made / "complete").exists():
            for old in cache.glob(f"{version}-*"):
                shutil.rmtree(old)
            subprocess.run([sys.executable, "-m", "venv", str(made)], check=True)
            install = ["install", "--quiet", "--disable-pip-version-check", "--require-hashes", "--no-deps"]
            subprocess.run([str(made / "bin/pip"), *install, "-r", str(LOCK)], check=True)
            (made / "complete").touch()
    return made / "bin/python"


@pytest.fixture(scope="session")
def chat_engine() -> Iterator[str]:
    """A llama-server that chats, for as long as it is asked to: its context is no limit."""
    with llama_server("--alias", "tiny", "--context-shift") as address:
        yield address


@pytest.fixture(scope="session")
def embedding_engine() -> Iterator[str]:
    """A llama-server that embeds."""
    with llama_server("--alias", "embed", "--embeddings", "--pooling", "mean") as address:
        yield address


@pytest.fixture(scope="session")
def talking_engine() -> Iterator[str]:
    """A llama-server that says known things, calls tools, and answers with what they have found."""
    with llama_server("--alias", "talk", write=lambda path: write_table_model(path, SMALL_TALK)) as address:
        yield address


@pytest.fixture(scope="session")
def ranking_engine() -> Iterator[str]:
    """A llama-server that orders documents."""
    with llama_server("--alias", "rank", "--reranking", write=write_reranker) as address:
        yield address
