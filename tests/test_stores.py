"""`gs://` through gcsfs, from an emulator of Google's storage."""

import contextlib
import io
import socket
import time

import numpy as np
import pytest

from vit_jax import UserError
from vit_jax.conversion import downloads
from vit_jax.conversion.fetching import fetch

pytestmark = pytest.mark.filterwarnings("ignore:Sending a large body:ResourceWarning")  # by gcsfs, through aiohttp
pytest.importorskip("gcsfs", reason="needs gcsfs: pip install 'vit_jax[remote]'")
emulator = pytest.importorskip("gcp_storage_emulator.server", reason="needs gcp-storage-emulator")

OLD, NEW = (np.random.default_rng(seed).bytes(3_000_000) for seed in (0, 1))


@pytest.fixture
def store(tmp_path, monkeypatch):
    import gcsfs

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = emulator.create_server("127.0.0.1", port, in_memory=True)
    with contextlib.redirect_stdout(io.StringIO()):
        server.start()
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    gcsfs.GCSFileSystem.clear_instance_cache()
    store = gcsfs.GCSFileSystem()
    store.mkdir("weights")
    store.pipe("weights/a/x.npz", OLD)
    yield store
    gcsfs.GCSFileSystem.clear_instance_cache()
    server.stop()


def test_fetched_gone_on_from_and_never_mixed(store, tmp_path, monkeypatch):
    address = "gs://weights/a/x.npz"

    def show(progress, done, size=0):
        if done > 1_000_000:
            raise KeyboardInterrupt

    def stopped():
        with monkeypatch.context() as patch:
            patch.setattr(downloads.Progress, "show", show)
            with pytest.raises(KeyboardInterrupt):
                fetch(address)
        (part,) = tmp_path.rglob("*.part")
        return part.stat().st_size

    begun = []
    real = downloads._from_store
    monkeypatch.setattr(downloads, "_from_store", lambda *args: begun.append(real(*args)) or begun[-1])
    size = stopped()
    assert fetch(address).read_bytes() == OLD
    assert [remote.start for remote in begun] == [0, size]
    for path in (tmp_path / "cache").rglob("*x.npz*"):
        path.unlink()
    stopped()
    time.sleep(0.01)
    store.pipe("weights/a/x.npz", NEW)
    assert fetch(address).read_bytes() == NEW
    assert begun[-1].start == 0


def test_what_is_not_there_is_said(store):
    for address in ("gs://weights/a/y.npz", "gs://nobody/x.npz"):
        with pytest.raises(UserError, match="no file of this name, or no such bucket"):
            fetch(address)
