"""A Hugging Face hub on this machine with one repository, and a closed port."""

import contextlib
import functools
import hashlib
import json
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

import huggingface_hub
import pytest
from huggingface_hub import constants

REPOSITORY = "owner/small"
COMMIT = "0123456789abcdef" * 2 + "01234567"


def close_session():
    """Ends the connections of this process; the name of that depends on the version."""
    old = huggingface_hub.utils
    getattr(huggingface_hub, "close_session", getattr(old, "reset_sessions", None))()


@contextlib.contextmanager
def use_endpoint(url):
    """Makes huggingface_hub use `url`, as HF_ENDPOINT does in a new process."""
    files = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, url)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(constants, "ENDPOINT", url)
        for module in (constants, huggingface_hub.file_download):  # before 1.0, a copy of it
            patch.setattr(module, "HUGGINGFACE_CO_URL_TEMPLATE", files, raising=False)
        patch.setattr(constants, "HF_HUB_OFFLINE", False)
        close_session()
        try:
            yield
        finally:
            close_session()


def closed_port():
    """Returns the URL of a port that refuses connections."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{taken.getsockname()[1]}"


@contextlib.contextmanager
def serve(folder):
    """Serves the files of a folder as REPOSITORY; yields the list of requested paths."""
    asked = []
    handler = functools.partial(_Handler, folder=folder, asked=asked)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            with use_endpoint(f"http://127.0.0.1:{server.server_port}"):
                yield asked
        finally:
            server.shutdown()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    def __init__(self, *args, folder, asked):
        self._folder, self._asked = folder, asked
        super().__init__(*args)

    def do_GET(self):
        path = urlsplit(self.path).path
        self._asked.append(path)
        model = f"/api/models/{REPOSITORY}"
        files = {
            file.relative_to(self._folder).as_posix(): file.read_bytes()
            for file in sorted(self._folder.rglob("*"))
            if file.is_file()
        }
        name = path.removeprefix(f"/{REPOSITORY}/resolve/{COMMIT}/")
        if path in (model, f"{model}/revision/main"):
            siblings = [{"rfilename": name} for name in files]
            self._send_json({"id": REPOSITORY, "sha": COMMIT, "siblings": siblings})
        elif path == f"{model}/tree/{COMMIT}":
            self._send_json([_entry(name, content) for name, content in files.items()])
        elif name in files:
            self._send(200, files[name])
        else:
            self._send(404, b"")

    do_HEAD = do_GET

    def log_message(self, *args):
        pass

    def _send_json(self, content):
        self._send(200, json.dumps(content).encode())

    def _send(self, status, content):
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("ETag", f'"{hashlib.sha1(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)


def _entry(name, content):
    oid = hashlib.sha1(content).hexdigest()
    return {"type": "file", "path": name, "size": len(content), "oid": oid}
