"""A bucket on this machine: `gcp-storage-emulator`, which is told of each upload and may be made to lose it.

It also keeps to conditions (`ifGenerationMatch`) and tells generations, as Google's store does and the emulator does not:
the lock is made only where there is none, and TensorStore would stop where it reads what it has just written.
"""

import io
import logging
import os
import re
import threading
import urllib.parse
from functools import partial
from http.server import HTTPServer

from gcp_storage_emulator.handlers import buckets
from gcp_storage_emulator.server import RequestHandler
from gcp_storage_emulator.storage import Storage

NAME = "bucket"
logging.getLogger("gcp_storage_emulator").setLevel(logging.CRITICAL)  # it calls every missing object an error


class Bucket:
    """`with Bucket() as bucket`: a server of `gs://bucket`, empty, and this process and its children as its clients.

    `on_upload(name)` is called in the middle of each upload; where it returns False the upload never happened.
    """

    def __init__(self):
        self.storage = Storage(use_memory_fs=True)
        buckets.create_bucket(NAME, self.storage)
        self.on_upload = lambda name: True
        self.uploads = []
        self.server = Server(("localhost", 0), partial(Handler, self))

    def __enter__(self):
        address = f"http://localhost:{self.server.server_port}"
        os.environ["STORAGE_EMULATOR_HOST"] = os.environ["TENSORSTORE_GCS_HTTP_URL"] = address
        # gcsfs would ask a second API of Google's what kind of bucket this is, and complain that there is none.
        os.environ["GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT"] = "false"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *raised):
        self.server.shutdown()
        self.server.server_close()
        for name in ("STORAGE_EMULATOR_HOST", "TENSORSTORE_GCS_HTTP_URL", "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT"):
            del os.environ[name]

    def names(self, prefix=""):
        """Of all objects."""
        return sorted(name for name in self.storage.objects.get(NAME, {}) if name.startswith(prefix))

    def read(self, name):
        return self.storage.get_file(NAME, name)


class Server(HTTPServer):
    def handle_error(self, request, client_address):
        """Clients that were killed while they were answered are what this is for."""


class Handler(RequestHandler):
    """The emulator's, and what it leaves out: generations in answers, and as conditions of uploads."""

    def __init__(self, bucket, *args):
        self.bucket, self.generation = bucket, None
        super().__init__(bucket.storage, *args)

    def generation_of(self, name):
        return self.bucket.storage.objects.get(NAME, {}).get(name, {}).get("generation", "0")

    def do_GET(self):
        _, found, name = urllib.parse.urlsplit(self.path).path.partition("/o/")
        self.generation = self.generation_of(urllib.parse.unquote(name)) if found else None
        super().do_GET()

    def end_headers(self):
        if self.generation not in (None, "0"):
            self.send_header("x-goog-generation", self.generation)
        super().end_headers()

    def do_POST(self):
        query = urllib.parse.parse_qs(urllib.parse.urlsplit(self.path).query)
        if "uploadType" in query:
            body = self.rfile.read(int(self.headers["Content-Length"] or 0))
            self.rfile = io.BytesIO(body)
            name = query["name"][0] if "name" in query else re.search(rb'"name": *"([^"]*)"', body)[1].decode()
            self.bucket.uploads.append(name)
            if query.get("ifGenerationMatch", [self.generation_of(name)]) != [self.generation_of(name)]:
                self.send_error(412)
                return
            if not self.bucket.on_upload(name):
                self.close_connection = True
                return
        super().do_POST()
