"""A small server that answers as the Hugging Face Hub does, for tests of downloading."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "0123456789abcdef0123456789abcdef01234567"
FILES = {
    "config.json": b'{"_class_name": "Small", "width": 4}',
    "unet/config.json": b"{}",
    "unet/diffusion_pytorch_model.safetensors": b"weights",
    "unet/diffusion_pytorch_model.bin": b"pickle",
}


class _Hub(BaseHTTPRequestHandler):
    def _reply(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_GET(self) -> None:
        self.server.requests.append(f"{self.command} {self.path}")
        path = self.path.split("?")[0].removeprefix("/api/models").strip("/")
        parts = path.split("/")
        repository = "/".join(parts[:2])
        revision = parts[3] if len(parts) > 3 else "main"
        if repository == "owner/gated":
            return self._reply(403, X_Error_Code="GatedRepo", X_Error_Message="restricted")
        if repository == "owner/broken":
            return self._reply(500)
        if repository != "owner/model":
            return self._reply(404, X_Error_Code="RepoNotFound", X_Error_Message="not found")
        if revision not in ("main", COMMIT):
            return self._reply(404, X_Error_Code="RevisionNotFound", X_Error_Message="no such revision")
        if self.path.startswith("/api/models"):
            siblings = [{"rfilename": name} for name in FILES]
            if len(parts) > 2 and parts[2] == "tree":
                body = [
                    {"type": "file", "path": k, "size": len(v), "oid": _etag(v)} for k, v in FILES.items()
                ]
                return self._reply(200, json.dumps(body).encode(), Content_Type="application/json")
            info = {"id": repository, "sha": COMMIT, "siblings": siblings}
            return self._reply(200, json.dumps(info).encode(), Content_Type="application/json")
        name = "/".join(parts[4:])
        if name not in FILES:
            return self._reply(
                404, X_Error_Code="EntryNotFound", X_Error_Message="no file", X_Repo_Commit=COMMIT
            )
        return self._reply(200, FILES[name], X_Repo_Commit=COMMIT, ETag=f'"{_etag(FILES[name])}"')

    do_HEAD = do_GET

    def log_message(self, format: str, *args: object) -> None:
        pass


def _etag(data: bytes) -> str:
    return hashlib.sha1(data).hexdigest()


@contextmanager
def hub() -> Iterator[tuple[str, list[str]]]:
    """The server's address, and the list that its requests are written to."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Hub)
    server.requests = []
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", server.requests
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
