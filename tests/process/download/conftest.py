import random

import pytest

from e2e.cluster.network import free_ports
from e2e.hub import HubServer, Store
from tests.process.download.support import Downloader, make_repo

MODEL = random.Random(7).randbytes(40_000_000)


@pytest.fixture(scope="session")
def model_bytes():
    """The 40 MB file of the fault table."""
    return MODEL


@pytest.fixture(scope="session")
def _root(tmp_path_factory):
    root = tmp_path_factory.mktemp("hub")
    make_repo(root, "acme/model", {"config.json": b'{"a": 1}', "model.gguf": MODEL})
    make_repo(root, "acme/one", {"model.gguf": MODEL})
    return root


@pytest.fixture(scope="session")
def store(_root):
    """acme/model (config.json and the 40 MB model.gguf) and acme/one (the latter alone)."""
    return Store(_root, rescan=3600)


@pytest.fixture
def hub(store):
    """A hub that serves `store`."""
    with HubServer(store) as server:
        yield server


@pytest.fixture
def download(hub, tmp_path):
    """Runs the command into a fresh folder."""
    return Downloader(hub, tmp_path / "models")


@pytest.fixture
def free_port():
    """A port nobody listens on."""
    return free_ports(["status"])["status"]
