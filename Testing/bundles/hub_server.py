"""A model hub on 127.0.0.1: serves files the way Hugging Face does, and misbehaves when told to."""

from __future__ import annotations

import hashlib
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Request:
    method: str
    target: str
    range: str | None


@dataclass
class Hub:
    """Files by ``(repository, path)``; what was asked for; and which files to break."""

    files: dict[tuple[str, str], bytes] = field(default_factory=dict)
    requests: list[Request] = field(default_factory=list)
    break_after: dict[str, int] = field(default_factory=dict)  # once: close the connection after so many bytes
    corrupt: set[str] = field(default_factory=set)
    gated: bool = False
    address: str = ""

    def start(self) -> ThreadingHTTPServer:
        hub = self

        class Handler(_Handler):
            pass

        Handler.hub = hub
        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.daemon_threads = True
        self.address = f"http://127.0.0.1:{server.server_port}"
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        return server

    def ranges(self, path: str) -> list[str | None]:
        return [r.range for r in self.requests if r.method == "GET" and r.target.endswith(path)]


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, body: bool) -> None:
        self.hub.requests.append(Request(self.command, self.path, self.headers.get("Range")))
        target = urlsplit(self.path)  # a proxy gets whole addresses
        repository, _, rest = unquote(target.path).lstrip("/").partition("/resolve/")
        revision, _, path = rest.partition("/")
        if self.hub.gated:
            return self._refuse(403, "GatedRepo")
        if not any(repository == known for known, _ in self.hub.files):
            return self._refuse(404, "RepoNotFound")
        if revision not in ("main", COMMIT):
            return self._refuse(404, "RevisionNotFound")
        content = self.hub.files.get((repository, path))
        if content is None:
            return self._refuse(404, "EntryNotFound")
        sha256 = hashlib.sha256(content).hexdigest()
        if path in self.hub.corrupt:
            content = content[:-8] + b"\0corrupt"
        first = int(self.headers["Range"].removeprefix("bytes=").split("-")[0]) if "Range" in self.headers else 0
        self.send_response(206 if first else 200)
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Accept-Ranges", "bytes")
        if path.endswith(".pt"):  # large files are kept elsewhere, under their SHA-256
            self.send_header("X-Linked-ETag", f'"{sha256}"')
            self.send_header("X-Linked-Size", str(len(content)))
        self.send_header("ETag", f'"{hashlib.sha1(content).hexdigest()}"')
        if first:
            self.send_header("Content-Range", f"bytes {first}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(content) - first))
        self.end_headers()
        if not body:
            return None
        stop = self.hub.break_after.pop(path, None)
        self.wfile.write(content[first:stop])
        if stop is not None:
            self.wfile.flush()
            self.close_connection = True
            self.connection.shutdown(2)
        return None

    def _refuse(self, status: int, code: str) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()
