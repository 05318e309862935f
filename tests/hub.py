"""A stand-in for the Hugging Face Hub: an HTTP server with the few endpoints that huggingface_hub uses."""

import base64
import hashlib
import http.server
import json
import threading
import urllib.parse
from typing import Any


class Hub(http.server.ThreadingHTTPServer):
    """Repositories in memory. requests: the paths that were asked for, in their order."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repositories: dict[str, dict[str, dict[str, bytes]]] = {}  # files by name, revision and path
        self.private: dict[str, bool] = {}
        self.requests: list[str] = []
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def find(self, name: str, revision: str) -> tuple[dict[str, bytes], str] | None:
        """The files of a repository at a branch or commit, and the commit."""
        for branch, files in self.repositories.get(name, {}).items():
            sha = commit(name, branch, files)
            if revision in (branch, sha):
                return files, sha
        return None


def commit(name: str, branch: str, files: dict[str, bytes]) -> str:
    return hashlib.sha1(repr((name, branch, sorted(files.items()))).encode()).hexdigest()


class Handler(http.server.BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *args: Any) -> None:
        pass

    def answer(self, content: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def missing(self, code: str) -> None:
        self.answer({"error": code}, 404, {"X-Error-Code": code})

    def do_GET(self) -> None:
        self.server.requests.append(self.path)
        parts = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path).strip("/").split("/")
        api = parts[:2] == ["api", "models"]
        name = "/".join(parts[2:4] if api else parts[:2])
        if name not in self.server.repositories:
            return self.missing("RepoNotFound")
        what, revision, *rest = [*parts[4 if api else 2 :], "revision", "main"]
        found = self.server.find(name, revision)
        if found is None:
            return self.missing("RevisionNotFound")
        files, sha = found
        if api and what == "tree":
            blobs = [(path, content) for path, content in files.items()]
            return self.answer(
                [
                    {"type": "file", "path": path, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                    for path, content in blobs
                ]
            )
        if api:
            return self.answer({"id": name, "sha": sha, "siblings": [{"rfilename": path} for path in files]})
        path = "/".join(rest[:-2])
        if path not in files:
            return self.missing("EntryNotFound")
        etag = hashlib.sha1(files[path]).hexdigest()
        return self.answer(files[path], headers={"ETag": f'"{etag}"', "X-Repo-Commit": sha})

    do_HEAD = do_GET

    def do_POST(self) -> None:
        self.server.requests.append(self.path)
        body = self.rfile.read(int(self.headers["Content-Length"]))
        parts = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path).strip("/").split("/")
        if self.headers.get("Authorization") != "Bearer hf_write":
            return self.answer({"error": "Invalid username or password."}, 401)
        if parts == ["api", "repos", "create"]:
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}"
            self.server.repositories.setdefault(name, {"main": {}})
            self.server.private.setdefault(name, asked.get("visibility") == "private" or bool(asked.get("private")))
            return self.answer({"url": f"{self.server.address}/{name}"})
        if parts == ["api", "validate-yaml"]:
            return self.answer({"errors": [], "warnings": []})
        name, what, revision = "/".join(parts[2:4]), parts[4], parts[5]
        branches = self.server.repositories[name]
        if what == "branch":
            branches.setdefault(revision, dict(branches["main"]))
            return self.answer({})
        if what == "preupload":
            files = json.loads(body)["files"]
            modes = [{"path": file["path"], "uploadMode": "regular", "shouldIgnore": False} for file in files]
            return self.answer({"files": modes})
        assert what == "commit", self.path
        for line in map(json.loads, body.splitlines()):
            if line["key"] == "file":
                branches[revision][line["value"]["path"]] = base64.b64decode(line["value"]["content"])
        sha = commit(name, revision, branches[revision])
        return self.answer({"commitUrl": f"{self.server.address}/{name}/commit/{sha}", "commitOid": sha})
