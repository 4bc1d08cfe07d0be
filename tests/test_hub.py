"""`hf:` from a server that speaks the hub's protocol, with the hub's own library as client, in a process of its own."""

import hashlib
import http.server
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("huggingface_hub", reason="needs huggingface_hub: pip install 'vit_jax[remote]'")

WEIGHTS = np.random.default_rng(0).bytes(12_000_000)  # the client writes, and goes on, by chunks of 10 MiB
FILES = {"config.json": b'{"model_type": "vit"}', "model.safetensors": WEIGHTS, "README.md": b"not fetched"}
COMMIT = "a" * 40
SCRIPT = """
import sys
from vit_jax import UserError
from vit_jax.conversion.fetching import fetch
try:
    print(fetch(sys.argv[1]))
except UserError as error:
    sys.exit(str(error))
"""


class Hub(http.server.BaseHTTPRequestHandler):
    """owner/name is public and has the revisions main and v1; owner/gated wants its terms accepted."""

    protocol_version = "HTTP/1.1"
    asked, damaged, breaks = [], False, False

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        path = self.path.partition("?")[0].removeprefix("/api/models/").strip("/")
        repository = "/".join(path.split("/")[:2])
        if repository == "owner/gated":
            return self.fail(403, "GatedRepo", "accept the terms")
        if repository != "owner/name":
            return self.fail(401, "RepoNotFound", "Repository Not Found")
        what, _, rest = path.removeprefix(f"{repository}/").partition("/")
        revision, _, file = rest.partition("/")
        if revision not in ("main", "v1", COMMIT):
            return self.fail(404, "RevisionNotFound", "Invalid rev id")
        if what == "revision":
            files = [{"rfilename": name} for name in FILES]
            return self.answer(json.dumps({"id": repository, "sha": COMMIT, "siblings": files}).encode())
        if what == "tree":
            return self.answer(json.dumps([self.entry(name) for name in FILES]).encode())
        if file not in FILES:
            return self.fail(404, "EntryNotFound", "Entry not found")
        return self.file(file)

    def entry(self, name):
        large = {"lfs": {"oid": hashlib.sha256(FILES[name]).hexdigest(), "size": len(FILES[name]), "pointerSize": 130}}
        found = {"type": "file", "oid": hashlib.sha1(FILES[name]).hexdigest(), "size": len(FILES[name]), "path": name}
        return found | (large if name.endswith("safetensors") else {})

    def file(self, name):
        content = FILES[name]
        large = name.endswith("safetensors")
        digest = hashlib.sha256(content).hexdigest() if large else hashlib.sha1(content).hexdigest()
        if self.command == "GET":
            Hub.asked.append((name, self.headers.get("Range")))
        if large and Hub.damaged:
            content = b"\0" + content[1:]
        headers = {"ETag": f'"{digest}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        if large:
            headers |= {"X-Linked-Etag": f'"{digest}"', "X-Linked-Size": str(len(content))}
        self.answer(content, headers, breaks=large and Hub.breaks)

    def answer(self, content, headers=None, code=200, breaks=False):
        asked = (headers or {}) and self.headers.get("Range")
        start = int(asked.removeprefix("bytes=").partition("-")[0]) if asked and code == 200 else 0
        self.send_response(206 if start else code)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content[start:][: 11_000_000 if breaks else None])
        if breaks and self.command == "GET":
            Hub.breaks = False
            self.close_connection = True

    def fail(self, code, kind, message):
        self.answer(b"{}", {"X-Error-Code": kind, "X-Error-Message": message}, code)

    def log_message(self, *args):
        pass


@pytest.fixture(scope="module")
def hub():
    found = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    found.daemon_threads, found.handle_error = True, lambda *args: None
    threading.Thread(target=found.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{found.server_port}"
    found.shutdown()
    found.server_close()


@pytest.fixture
def get(hub, tmp_path):
    Hub.asked, Hub.damaged, Hub.breaks = [], False, False

    def get(address, **environment):
        """What `fetch` printed, or its sentence."""
        proxies = {name for name in os.environ if name.lower().endswith("_proxy")}
        variables = {name: value for name, value in os.environ.items() if name not in proxies}
        variables |= {"HF_ENDPOINT": hub, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "0"}
        variables |= {"XDG_CACHE_HOME": str(tmp_path / "cache"), "HF_HUB_DISABLE_XET": "1", "HF_TOKEN": ""}
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT, address], capture_output=True, text=True, env=variables | environment
        )
        return (done.stdout or done.stderr.strip().splitlines()[-1]).strip()

    return get


def content(folder):
    return {name: (folder / name).read_bytes() for name in os.listdir(folder)}


def test_a_repository_a_revision_and_a_single_file(get):
    folder = Path(get("hf:owner/name"))
    assert content(folder) == {name: FILES[name] for name in ("config.json", "model.safetensors")}
    assert sorted(Hub.asked) == [("config.json", None), ("model.safetensors", None)]
    assert Path(get("hf:owner/name@v1")) == folder
    assert Path(get("hf:owner/name/model.safetensors")) == folder / "model.safetensors"
    assert Path(get("hf:owner/name@v1/config.json")) == folder / "config.json"
    assert len(Hub.asked) == 2  # all is there
    assert Path(get("hf:owner/name", HF_HUB_OFFLINE="1")) == folder


@pytest.mark.slow
def test_what_breaks_off_is_gone_on_from(get):
    Hub.breaks = True
    said = get("hf:owner/name/model.safetensors")
    assert Path(said).read_bytes() == WEIGHTS
    assert Hub.asked[-1][1] == f"bytes={10 * 2**20}-"


def test_damaged_bytes_are_found_and_removed(get, tmp_path):
    Hub.damaged = True
    assert "it was damaged and is removed, try again" in get("hf:owner/name/model.safetensors")
    Hub.damaged = False
    assert get("hf:owner/name/model.safetensors").endswith("model.safetensors")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("hf:owner/other", "there is no {hub}/owner/other, or it is private"),
        ("hf:owner/gated", "accept its terms"),
        ("hf:owner/name@v2", "has no such revision"),
        ("hf:owner/name/none.bin", "has no such file"),
        ("hf:owner", "Expected hf:owner/name, "),
        ("hf:../../x/y", "Expected hf:owner/name, "),
    ],
)
def test_failures_say_what_to_do(address, words, get, hub):
    assert words.format(hub=hub) in get(address)


@pytest.mark.slow
def test_without_a_network_a_sentence(get):
    assert "HF_HUB_OFFLINE forbids" in get("hf:owner/name", HF_HUB_OFFLINE="1")
    assert "http://127.0.0.1:9/owner/name gave none" in get("hf:owner/name", HF_ENDPOINT="http://127.0.0.1:9")
