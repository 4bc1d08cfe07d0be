"""Downloads that break off go on with the same version of the file or begin anew; never a mixture."""

import http.server
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from vit_jax import UserError
from vit_jax.conversion import downloads
from vit_jax.conversion.fetching import fetch

OLD, NEW = (np.random.default_rng(seed).bytes(3_000_000) for seed in (0, 1))
SCRIPT = "import sys; from vit_jax.conversion.fetching import fetch; print(fetch(sys.argv[1]))"


class Server(http.server.BaseHTTPRequestHandler):
    """A file with a tag, that knows ranges, as far as `plays` does not say otherwise."""

    content, plays, asked, slow = OLD, frozenset(), [], 0.0

    def do_GET(self):
        found, play = Server.content, Server.plays
        asked, condition = self.headers.get("Range"), self.headers.get("If-Range")
        Server.asked.append(asked)
        tag = f'"{hash(found)}"'
        start = int(re.fullmatch(r"bytes=(\d+)-", asked)[1]) if asked and "no ranges" not in play else 0
        if start and condition != tag and "deaf" not in play:
            start = 0
        if start >= len(found):
            self.send_response(416)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(found) - 1}/{len(found)}")
        if "no tag" not in play and not ("no tag on parts" in play and start):
            self.send_header("ETag", f"W/{tag}" if "weak" in play else tag)
        self.send_header("Content-Length", str(len(found) - start))
        self.end_headers()
        rest = found[start:]
        breaks = "breaks" in play and len(Server.asked) < 4
        for place in range(0, len(rest) // 3 if breaks else len(rest), 100_000):
            self.wfile.write(rest[place : place + 100_000])
            time.sleep(Server.slow)
        if breaks:
            self.close_connection = True

    def log_message(self, *args):
        pass


@pytest.fixture(scope="module")
def address():
    found = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
    found.daemon_threads, found.handle_error = True, lambda *args: None
    thread = threading.Thread(target=found.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{found.server_port}/x.npz"
    found.shutdown()
    found.server_close()


@pytest.fixture(autouse=True)
def fresh(tmp_path, monkeypatch):
    Server.content, Server.plays, Server.asked, Server.slow = OLD, frozenset(), [], 0.0
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "cache"


def stopped(address, monkeypatch):
    """A start that ends in the middle, as by Ctrl-C; how much it left."""

    def show(progress, done, size=0):
        if done > 1_000_000:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(downloads.Progress, "show", show)
        with pytest.raises(KeyboardInterrupt):
            fetch(address)
    Server.asked.clear()


def test_a_transfer_that_breaks_off_goes_on_at_once(address, fresh):
    Server.plays = {"breaks"}
    assert fetch(address).read_bytes() == OLD
    starts = [int(asked[6:-1]) for asked in Server.asked[1:]]
    assert len(starts) == 3
    assert starts == sorted(starts)
    assert starts[0] > 0
    assert sorted(path.name for path in fresh.rglob("*") if path.is_file()) == [".x.npz.length", "x.npz"]


def test_a_later_start_goes_on(address, fresh, monkeypatch):
    stopped(address, monkeypatch)
    (part,) = fresh.rglob(".x.npz.part")
    assert OLD.startswith(part.read_bytes())
    size = part.stat().st_size
    assert size > 1_000_000
    assert fetch(address).read_bytes() == OLD
    assert Server.asked == [f"bytes={size}-"]
    assert not list(fresh.rglob("*.part"))


@pytest.mark.parametrize("play", ["", "deaf", "no tag on parts", "no ranges"])
@pytest.mark.parametrize("length", [3_000_000, 500_000, 2_000_000])
def test_a_file_that_changed_meanwhile_is_no_mixture(play, length, address, monkeypatch):
    stopped(address, monkeypatch)
    Server.content, Server.plays = NEW[:length], {play, "deaf" if play else ""}
    assert fetch(address).read_bytes() == NEW[:length]
    assert Server.asked[0].startswith("bytes=")


@pytest.mark.parametrize("play", ["no tag", "weak"])
def test_without_a_name_of_the_version_nothing_is_kept(play, address, fresh, monkeypatch):
    Server.plays = {play}
    stopped(address, monkeypatch)
    assert not [path for path in fresh.rglob("*") if path.is_file()]
    assert fetch(address).read_bytes() == OLD
    assert Server.asked == [None]


def test_a_part_whose_note_was_lost_or_torn_begins_anew(address, fresh, monkeypatch):
    for torn in ("", "[", "[1]", "{}", None):
        stopped(address, monkeypatch)
        (note,) = fresh.rglob(".x.npz.version")
        note.unlink() if torn is None else note.write_text(torn)
        assert fetch(address).read_bytes() == OLD
        assert Server.asked == [None]
        for path in fresh.rglob("*x.npz*"):
            path.unlink()


def test_what_was_fetched_wholly_but_not_renamed_is_not_fetched_again(address, fresh, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(downloads, "_check", lambda *args: 1 / 0)
        with pytest.raises(UserError):
            fetch(address)
    Server.asked.clear()
    assert fetch(address).read_bytes() == OLD
    assert not Server.asked


@pytest.mark.parametrize(
    ("code", "words"), [(401, "asks who you are"), (403, "asks who you are"), (404, "no file of this name")]
)
def test_refusals_say_what_to_do(code, words, address, monkeypatch):
    monkeypatch.setattr(Server, "do_GET", lambda self: self.send_error(code))
    with pytest.raises(UserError, match=f"{code}.*{words}") as error:
        fetch(address)
    assert "\n" not in str(error.value)


def test_no_network_is_said(monkeypatch):
    import socket

    def nobody(*args, **kwargs):
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", nobody)
    with pytest.raises(UserError, match=r"no network, or no server example\.org"):
        fetch("https://example.org/x.npz")


def start(address):
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, address], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )


def test_several_processes_fetch_once_and_a_killed_one_leaves_its_part(address, fresh):
    Server.slow = 0.02
    first = start(address)
    while not [path for path in fresh.rglob(".x.npz.part") if path.stat().st_size > 500_000]:
        assert first.poll() is None
        time.sleep(0.01)
    others = [start(address) for _ in range(3)]
    time.sleep(0.1)
    os.kill(first.pid, signal.SIGKILL)
    first.communicate()
    said = {other.communicate()[0].strip() for other in others}
    assert {other.returncode for other in others} == {0}
    (path,) = said
    assert Path(path).read_bytes() == OLD
    assert len(Server.asked) == 2
    assert Server.asked[1].startswith("bytes=")
