"""A Hugging Face Hub of one process: as much of its protocol as sending and fetching a model needs."""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Kept:
    """What it has: repositories with their files and whether they are private, large objects, and what it was asked."""

    files: dict[str, dict[str, bytes]] = field(default_factory=dict)
    private: dict[str, bool] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    tokens: set[str] = field(default_factory=set)
    refuse: bool = False

    def commit(self, name: str) -> str:
        parts = sorted((path, hashlib.sha256(content).hexdigest()) for path, content in self.files[name].items())
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:40]


class Handler(BaseHTTPRequestHandler):
    """Answers for the `Kept` of its server."""

    server: Any
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 (the name it has there)
        pass

    def answer(self, table: Any = None, code: int = 200, content: bytes | None = None, **headers: str) -> None:
        body = json.dumps(table).encode() if content is None else content
        self.send_response(code)
        for key, value in {"Content-Type": "application/json", "Content-Length": str(len(body)), **headers}.items():
            self.send_header(key.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def do_POST(self) -> None:
        kept: Kept = self.server.kept
        body = self.body()
        path = self.path.partition("?")[0]
        kept.asked.append(f"POST {path}")
        kept.tokens.add(str(self.headers.get("Authorization")))
        if kept.refuse:
            self.answer({"error": "Invalid username or password."}, 401)
        elif path == "/api/repos/create":
            said = json.loads(body)
            name = f"{said['organization']}/{said['name']}"
            there = name in kept.files
            kept.files.setdefault(name, {})
            kept.private.setdefault(name, said.get("private") is True or said.get("visibility") == "private")
            self.answer({"url": f"{self.server.address}/{name}", "error": "exists"}, 409 if there else 200)
        elif path == "/api/validate-yaml":
            self.answer({"errors": [], "warnings": []})
        elif "/preupload/" in path:
            files = [
                {"path": each["path"], "uploadMode": mode(each["path"]), "shouldIgnore": False}
                for each in json.loads(body)["files"]
            ]
            self.answer({"files": files})
        elif path.endswith("/info/lfs/objects/batch"):
            objects = [
                {**each, "actions": {"upload": {"href": f"{self.server.address}/objects/{each['oid']}", "header": {}}}}
                for each in json.loads(body)["objects"]
            ]
            self.answer({"transfer": "basic", "objects": objects}, Content_Type="application/vnd.git-lfs+json")
        elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/main", path):
            name = found[1]
            for line in filter(None, body.splitlines()):
                step = json.loads(line)
                if step["key"] == "file":
                    kept.files[name][step["value"]["path"]] = base64.b64decode(step["value"]["content"])
                elif step["key"] == "lfsFile":
                    kept.files[name][step["value"]["path"]] = kept.objects[step["value"]["oid"]]
            commit = kept.commit(name)
            self.answer({"commitUrl": f"{self.server.address}/{name}/commit/{commit}", "commitOid": commit})
        else:
            self.answer({"error": "not here"}, 404)

    def do_PUT(self) -> None:
        kept: Kept = self.server.kept
        content = self.body()
        name = self.path.rpartition("/")[2]
        assert hashlib.sha256(content).hexdigest() == name
        kept.objects[name] = content
        self.answer({})

    def do_GET(self) -> None:
        kept: Kept = self.server.kept
        path = self.path.partition("?")[0]
        kept.asked.append(f"{self.command} {path}")
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/main)?", path):
            if found[1] not in kept.files:
                self.answer({"error": "Repository not found"}, 404, X_Error_Code="RepoNotFound")
                return
            siblings = [{"rfilename": each} for each in kept.files[found[1]]]
            self.answer({"id": found[1], "sha": kept.commit(found[1]), "siblings": siblings, "tags": []})
        elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/tree/[^/]+", path):
            files = kept.files[found[1]].items()
            self.answer(
                [{"type": "file", "path": each, "size": len(held), "oid": git_oid(held)} for each, held in files]
            )
        elif found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/[^/]+/(.+)", path):
            content = kept.files[found[1]][found[2]]
            digest = hashlib.sha256(content).hexdigest()
            told = {"ETag": f'"{digest}"', "X_Repo_Commit": kept.commit(found[1]), "Accept_Ranges": "bytes"}
            self.answer(content=content, **told, Content_Type="application/octet-stream")
        else:
            self.answer({"error": "not here"}, 404)

    def do_HEAD(self) -> None:
        self.do_GET()


def git_oid(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def mode(path: str) -> str:
    return "lfs" if path.endswith(".safetensors") else "regular"


@contextmanager
def serving() -> Iterator[tuple[str, Kept]]:
    """The address of a Hub on this machine, and what it keeps."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.kept = Kept()  # type: ignore[attr-defined]
    server.address = f"http://127.0.0.1:{server.server_port}"  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server.address, server.kept  # type: ignore[attr-defined]
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
