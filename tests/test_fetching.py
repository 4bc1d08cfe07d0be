"""Weights from addresses: a server in a thread that does everything wrong that servers do."""

import hashlib
import http.server
import os
import socket
import sys
import threading
import time

import numpy as np
import pytest

from vit_jax import UserError
from vit_jax.commands.cli import main
from vit_jax.conversion import catalogue, downloads, fetching
from vit_jax.conversion.fetching import fetch

CONTENT = np.random.default_rng(0).bytes(100_000)


class Server(http.server.BaseHTTPRequestHandler):
    """Plays what the path says."""

    asked: list[str] = []  # noqa: RUF012
    held = threading.Event()

    def do_GET(self):
        Server.asked.append(self.path)
        play = self.path.strip("/").split("/")[0]
        getattr(self, play, self.whole)()

    def answer(self, content, length=None, code=200, **headers):
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name, value)
        if length is not None:
            self.send_header("Content-Length", str(length))
        self.end_headers()
        self.wfile.write(content)

    def whole(self):
        self.answer(CONTENT, len(CONTENT))

    def short(self):
        self.answer(CONTENT[:5000], len(CONTENT))

    def chunked(self):
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self.wfile.write(b"1000\r\n" + CONTENT[:100])

    def empty(self):
        self.answer(b"", 0)

    def page(self):
        self.answer(b"\n<!DOCTYPE html><html>log in first</html>", 40)

    def missing(self):
        self.answer(b"no", 2, code=404)

    def broken(self):
        self.answer(b"no", 2, code=500)

    def loop(self):
        self.answer(b"", 0, code=302, Location="/loop/again")

    def away(self):
        self.answer(b"", 0, code=302, Location="file:///etc/passwd")

    def ftp(self):
        self.answer(b"", 0, code=302, Location="ftp://127.0.0.1/x")

    def moved(self):
        self.answer(b"", 0, code=302, Location="/whole/x.npz")

    def silent(self):
        Server.held.wait(20)

    def stalls(self):
        self.answer(CONTENT[:5000], len(CONTENT))
        self.wfile.flush()
        Server.held.wait(20)

    def slow(self):
        self.answer(b"", len(CONTENT))
        for _ in range(100):
            self.wfile.write(b"x")
            if Server.held.wait(0.05):
                break

    def log_message(self, *args):
        pass


@pytest.fixture(scope="module")
def server():
    found = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
    found.daemon_threads = True
    found.handle_error = lambda *args: None  # a client that left
    thread = threading.Thread(target=found.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{found.server_port}"
    Server.held.set()
    found.shutdown()
    found.server_close()
    thread.join()


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    Server.asked.clear()
    Server.held.clear()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "cache"


def files(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


def test_fetched_once_and_whole(server, cache, capsys):
    local = fetch(f"{server}/whole/x.npz")
    assert local.read_bytes() == CONTENT
    assert local.name == "x.npz"
    assert fetch(f"{server}/whole/x.npz") == local
    assert Server.asked == ["/whole/x.npz"]
    assert capsys.readouterr().err.count("fetching") == 1
    assert fetch(f"{server}/moved/x.npz").read_bytes() == CONTENT
    assert not list(cache.rglob("*.part"))


WRONG = {
    "short": "5,000 bytes", "chunked": "failed", "empty": "0 bytes", "page": "web page", "missing": "404", "broken": "500",
    "loop": "302", "away": "file:///etc/passwd", "ftp": "ftp",
}  # fmt: skip


@pytest.mark.parametrize("play", WRONG)
def test_what_is_not_whole_is_not_kept(play, server, cache):
    with pytest.raises(UserError) as error:
        fetch(f"{server}/{play}/x.npz")
    assert WRONG[play] in str(error.value)
    assert "\n" not in str(error.value)
    assert not files(cache)


@pytest.mark.parametrize("play", ["silent", "stalls", "slow"])
def test_a_silent_server_is_given_up(play, server, cache, monkeypatch):
    monkeypatch.setattr(downloads, "SILENCE", 0.5)
    monkeypatch.setattr(downloads, "PATIENCE", 0.5)
    began = time.monotonic()
    with pytest.raises(UserError, match=r"nothing came|only [\d,]+ bytes"):
        fetch(f"{server}/{play}/x.npz")
    assert time.monotonic() - began < 15
    assert not files(cache)


def test_nobody_there(cache):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(UserError, match="refused"):
        fetch(f"http://127.0.0.1:{port}/x.npz")
    assert not files(cache)


def test_a_file_that_was_cut_off_is_fetched_again(server, cache):
    address = f"{server}/whole/x.npz"
    local = fetch(address)
    local.write_bytes(CONTENT[:1000])
    assert fetch(address).read_bytes() == CONTENT
    # one whose length nobody noted, and what a killed process left
    for path in files(cache):
        if path != local:
            path.unlink()
    local.write_bytes(CONTENT[:1000])
    (local.parent / "x.npz.abc.part").write_bytes(CONTENT[:2000])
    assert fetch(address).read_bytes() == CONTENT
    assert len(Server.asked) == 3


def test_sha256_is_compared_where_it_is_known(server, cache, monkeypatch):
    right = hashlib.sha256(CONTENT).hexdigest()[:8]
    for name, digits in (("right", right), ("wrong", "0" * 8)):
        monkeypatch.setattr(
            fetching, "PUBLISHED", [catalogue.Published("a/name", f"{server}/whole/{name}-{digits}.pth", 1, "", "")]
        )
        if name == "right":
            assert fetch("a/name").read_bytes() == CONTENT
            continue
        for asked in ("a/name", f"{server}/whole/{name}-{digits}.pth"):
            with pytest.raises(UserError, match=f"sha256 begins with {right}, {digits}"):
                fetch(asked)
    assert len([path for path in files(cache) if path.suffix == ".pth"]) == 1


def test_deits_names_carry_their_digits():
    known = {entry.name: entry.sha256 for entry in catalogue.PUBLISHED if entry.sha256}
    assert known["deit/ti16"] == "a1311bcf"
    assert len(known) == 6


@pytest.mark.parametrize(
    "path",
    ["/../../../../etc/x.npz", "//etc/x.npz", "/a/../../x.npz", "/..", "/", "", "/%2e%2e/%2e%2e/x.npz", "/x.npz?a=/../../b",
     "/x" + "y" * 500 + ".npz", "/x.npz#../..", "/..%00/x.npz", "/a\\..\\..\\x.npz", "/.hidden"],
)  # fmt: skip
def test_addresses_stay_in_the_cache(path, server, cache, tmp_path):
    before = {found for found in tmp_path.rglob("*") if cache not in (found, *found.parents)}
    local = fetch(f"{server}{path}")
    assert local.read_bytes() == CONTENT
    assert local.parent.parent == cache / "vit_jax" / "weights"
    assert not local.name.startswith(".")
    assert before == {found for found in tmp_path.rglob("*") if cache not in (found, *found.parents)}


@pytest.mark.parametrize("address", ["http://user:secret@127.0.0.1:1/x.npz", "https://secret@127.0.0.1/x"])
def test_passwords_are_not_shown(address, cache):
    with pytest.raises(UserError) as error:
        fetch(address)
    assert "secret" not in str(error.value)


@pytest.mark.parametrize(
    "address", ["nonsense://x/y.npz", "http://", "http://[::1/x.npz", "http://x\0y/", "s3://b/x.npz"]
)
def test_addresses_that_are_none(address, cache):
    with pytest.raises(UserError):
        fetch(address)
    assert not files(cache)


def test_ctrl_c_leaves_nothing(server, cache, monkeypatch):
    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(downloads.Progress, "show", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fetch(f"{server}/whole/x.npz")
    assert not files(cache)


def test_two_at_once(server):
    found = []
    threads = [threading.Thread(target=lambda: found.append(fetch(f"{server}/whole/x.npz"))) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 6
    assert {path.read_bytes() for path in found} == {CONTENT}


def test_a_terminal_sees_bytes_of_bytes(server, monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    fetch(f"{server}/whole/x.npz")
    assert "0 of 0 MB" in capsys.readouterr().err


def test_every_published_name_loads_as_far_as_fetching(monkeypatch, tmp_path, capsys):
    asked = []

    def no_network(address, *rest):
        asked.append(address)
        raise OSError("no network")

    monkeypatch.setattr(downloads, "opened", no_network)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    for entry in catalogue.PUBLISHED:
        assert main(["convert", entry.name, str(tmp_path / "out")]) == 2
        said = capsys.readouterr().err
        assert (
            ("huggingface_hub" in said and "vit_jax[remote]" in said)
            if entry.path.startswith("hf:")
            else entry.path in said
        )
    assert asked == [entry.path for entry in catalogue.PUBLISHED if not entry.path.startswith("hf:")]
    assert not (tmp_path / "out").exists()


def test_a_name_that_is_nearly_one(capsys):
    assert main(["eval", "deit/ti61"]) == 2
    assert "did you mean deit/ti16" in capsys.readouterr().err


def test_training_begins_from_a_published_name(server, small, tmp_path, monkeypatch):
    from vit_jax import train

    monkeypatch.setattr(fetching, "PUBLISHED", [catalogue.Published("deit/ti16", f"{server}/missing/x.pth", 1, "", "")])
    with pytest.raises(UserError, match="404"):
        train.run(small("finetune", total_steps=2, warmup_steps=1, init_from="deit/ti16"), tmp_path / "run")


def test_public_buckets_need_no_library(monkeypatch):
    opened = []
    monkeypatch.setitem(sys.modules, "gcsfs", None)

    def record(self, request, timeout):
        opened.append((request.full_url, timeout))
        raise OSError("no network")

    monkeypatch.setattr("urllib.request.OpenerDirector.open", record)
    with pytest.raises(UserError, match=r"gs://vit_models/augreg/a b\.npz, it failed"):
        fetch("gs://vit_models/augreg/a b.npz")
    assert opened == [("https://storage.googleapis.com/vit_models/augreg/a%20b.npz", downloads.SILENCE)]


def test_other_stores_name_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "fsspec", None)
    with pytest.raises(UserError, match=r"vit_jax\[remote\]"):
        fetch("s3://bucket/x.npz")


def test_file_addresses_and_the_user_s_folder(tmp_path, monkeypatch):
    path = tmp_path / "a b.npz"
    path.write_bytes(b"x")
    assert fetch(path.as_uri()) == path
    monkeypatch.setenv("HOME", str(tmp_path))
    assert os.path.samefile(fetch("~/a b.npz"), path)
    for wrong in ("x" * 5000, "a\0b", (tmp_path / "no").as_uri(), "~nobody-of-this-name/x"):
        with pytest.raises(UserError, match="does not exist"):
            fetch(wrong)
