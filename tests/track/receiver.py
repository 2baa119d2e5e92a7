"""A stand-in for the W&B server on loopback: it takes what `wandb` sends and keeps it, run by run."""

import base64
import gzip
import itertools
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

KEY = "0123456789abcdef" * 4


@dataclass
class Run:
    """One run as the server has it: what its attempts sent, put together as the server would."""

    id: str
    project: str
    attributes: dict = field(default_factory=dict)  # groupName, jobType, tags, displayName
    config: dict = field(default_factory=dict)
    lines: dict = field(default_factory=dict)  # of each stream, such as wandb-history.jsonl
    files: dict = field(default_factory=dict)
    artifacts: dict = field(default_factory=dict)  # by name
    exit_codes: list = field(default_factory=list)
    preempted: bool = False

    @property
    def history(self) -> list[dict]:
        return [json.loads(line) for line in self.lines.get("wandb-history.jsonl", [])]

    @property
    def events(self) -> list[dict]:
        return [json.loads(line) for line in self.lines.get("wandb-events.jsonl", [])]

    @property
    def summary(self) -> dict:
        return json.loads(self.lines.get("wandb-summary.json", ["{}"])[0])

    def table(self, key: str) -> list[dict]:
        """The rows of the table that the summary names."""
        content = json.loads(self.files[self.summary[key]["path"]])
        return [dict(zip(content["columns"], row, strict=True)) for row in content["data"]]


class Receiver:
    """`with Receiver() as receiver`: listens at `receiver.url`, keeps `runs` by id; `down = True`: out of order.

    Args:
        key: the only API key that is let in.
    """

    def __init__(self, key: str = KEY):
        self.key, self.runs, self.operations, self.unknown, self.down = key, {}, [], [], False
        self.numbers, self.lock, self.artifacts, self.views = itertools.count(), threading.Lock(), {}, []

    def __enter__(self) -> "Receiver":
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (_Handler,), {"receiver": self}))
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        return self

    def __exit__(self, *_) -> None:
        self.server.shutdown()
        self.server.server_close()

    def environment(self, home, key: str | None = None) -> dict[str, str]:
        """Variables with which a `wandb` of its own home talks to this receiver alone."""
        folders = {name: str(home / name.lower()) for name in ("WANDB_CONFIG_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR")}
        return {
            **folders,
            "HOME": str(home),
            "WANDB_BASE_URL": self.url,
            "WANDB_API_KEY": key or self.key,
            "WANDB_ERROR_REPORTING": "false",
        }

    def run(self, name: str, project: str) -> Run:
        return self.runs.setdefault(name, Run(name, project))

    def query(self, operation: str, variables: dict) -> dict:
        """The answer to one GraphQL operation, with the fields that `wandb` 0.31 asks for."""
        self.operations.append(operation)
        answer = getattr(self, f"_{operation}", None)
        if answer is None:
            self.unknown.append(operation)
            return {}
        return answer(variables)

    def _Viewer(self, _: dict) -> dict:
        viewer = {"id": "u", "entity": "me", "username": "me", "email": "me@localhost", "flags": "{}"}
        viewer |= {"__typename": "User", "name": "me", "admin": False, "deletedAt": None, "apiKeys": {"edges": []}}
        return {"viewer": {**viewer, "teams": {"edges": []}}}

    _GetDefaultEntity = _Viewer

    def _GetProjects(self, variables: dict) -> dict:
        project = {"__typename": "Project", "id": "p", "name": "demo", "entityName": variables["entity"], "user": None}
        project |= {"createdAt": "2024-01-01T00:00:00Z", "isBenchmark": False}
        page = {"__typename": "PageInfo", "endCursor": None, "hasNextPage": False}
        return {"models": {"pageInfo": page, "edges": [{"node": project}]}}

    def _ServerFeaturesQuery(self, _: dict) -> dict:
        return {"serverInfo": {"features": []}}

    def _OrganizationCoreWeaveOrganizationID(self, _: dict) -> dict:
        return {"entity": None}

    def _UpsertBucket(self, variables: dict) -> dict:
        inserted = variables["name"] not in self.runs
        run = self.run(variables["name"], variables.get("project"))
        run.attributes |= {key: value for key, value in variables.items() if value is not None and key != "config"}
        if variables.get("config"):
            run.config = {key: item["value"] for key, item in json.loads(variables["config"]).items()}
        entity = {"id": "e", "name": "me"}
        bucket = {"id": run.id, "name": run.id, "displayName": run.attributes.get("displayName"), "config": "{}"}
        bucket |= {"description": "", "sweepName": None, "historyLineCount": len(run.history)}
        bucket["project"] = {"id": "p", "name": run.project, "entity": entity}
        return {"upsertBucket": {"bucket": bucket, "inserted": inserted}}

    def _RunResumeStatus(self, variables: dict) -> dict:
        run = self.runs.get(variables["name"])
        bucket = run and {
            "id": run.id,
            "name": run.id,
            "displayName": run.attributes.get("displayName"),
            "summaryMetrics": json.dumps(run.summary),
            "config": json.dumps({key: {"value": value} for key, value in run.config.items()}),
            "tags": run.attributes.get("tags", []),
            "notes": None,
            "wandbConfig": json.dumps({"t": 1}),
            **{f"{part}LineCount": len(run.lines.get(name, [])) for part, name in _STREAMS.items()},
            **{f"{part}Tail": json.dumps(run.lines.get(_STREAMS[part], [])[-1:]) for part in ("history", "events")},
        }
        entity = {"id": "e", "name": "me"}
        return {"model": {"id": "p", "name": variables.get("project"), "entity": entity, "bucket": bucket}}

    def _CreateRunFiles(self, variables: dict) -> dict:
        files = [{"name": name, "uploadUrl": self._url(variables["run"], name)} for name in variables["files"]]
        return {"createRunFiles": {"runID": variables["run"], "uploadHeaders": [], "files": files}}

    def _CreateArtifact(self, variables: dict) -> dict:
        given = variables["input"]
        number = f"artifact-{next(self.numbers)}"
        artifact = {"name": given["artifactCollectionName"], "type": given["artifactTypeName"], "files": {}}
        self.artifacts[number] = artifact
        self.run(given["runName"], given["projectName"]).artifacts[artifact["name"]] = artifact
        sequence = {"id": f"sequence-{number}", "latestArtifact": None}
        return {"createArtifact": {"artifact": {"id": number, "state": "PENDING", "artifactSequence": sequence}}}

    def _CreateArtifactManifest(self, variables: dict) -> dict:
        place = {"id": f"file-{next(self.numbers)}", "uploadHeaders": []}
        place["uploadUrl"] = self._url(variables["artifactID"], variables["name"])
        manifest = {"id": f"manifest-{variables['artifactID']}", "file": place}
        return {"createArtifactManifest": {"artifactManifest": manifest}}

    def _UpdateArtifactManifest(self, variables: dict) -> dict:
        number = variables["artifactManifestID"].removeprefix("manifest-")
        place = {"id": f"file-{next(self.numbers)}", "uploadHeaders": []}
        place["uploadUrl"] = self._url(number, "wandb_manifest.json")
        manifest = {"id": variables["artifactManifestID"], "file": place}
        return {"updateArtifactManifest": {"artifactManifest": manifest}}

    def _CreateArtifactFiles(self, variables: dict) -> dict:
        edges = [
            {
                "node": {
                    "storagePath": f"{file['artifactID']}/{file['name']}",
                    "uploadUrl": self._url(file["artifactID"], file["name"]),
                    "uploadHeaders": [],
                    "uploadMultipartUrls": None,
                    "artifact": {"id": file["artifactID"]},
                }
            }
            for file in variables["input"]["artifactFiles"]
        ]
        return {"createArtifactFiles": {"files": {"edges": edges}}}

    def _CommitArtifact(self, variables: dict) -> dict:
        self.artifacts[variables["artifactID"]]["committed"] = True
        return {"commitArtifact": {"artifact": {"id": variables["artifactID"], "digest": "d"}}}

    def _ArtifactType(self, _: dict) -> dict:
        return {"project": None}

    def _UpsertView2(self, variables: dict) -> dict:
        self.views.append(variables)
        view = {"id": f"view-{next(self.numbers)}", "name": variables["name"], "displayName": variables["displayName"]}
        view |= {"type": variables["type"], "description": "", "spec": variables["spec"], "updatedAt": None}
        view["project"] = {"id": "p", "name": variables["projectName"], "entityName": variables["entityName"]}
        return {"upsertView": {"view": view, "inserted": True}}

    _upsertView = _UpsertView2

    def _ClientIDMapping(self, variables: dict) -> dict:
        return {"clientIDMapping": {"serverID": variables["clientID"]}}

    def _url(self, owner: str, name: str) -> str:
        return f"{self.url}/upload/{owner}/{name}"

    def upload(self, owner: str, name: str, content: bytes) -> None:
        place = self.artifacts[owner]["files"] if owner in self.artifacts else self.runs[owner].files
        place[name] = content

    def stream(self, run: Run, sent: dict) -> None:
        """One piece of a run's streams: lines take the places that their offset says, as on the server."""
        for name, piece in (sent.get("files") or {}).items():
            lines = run.lines.setdefault(name, [])
            start = piece["offset"]
            assert start <= len(lines), (name, start, len(lines))
            lines[start : start + len(piece["content"])] = piece["content"]
        run.preempted |= bool(sent.get("preempting"))
        if sent.get("complete"):
            run.exit_codes.append(sent.get("exitcode"))


_STREAMS = {"history": "wandb-history.jsonl", "events": "wandb-events.jsonl", "log": "output.log"}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    receiver: Receiver

    def log_message(self, *_) -> None:
        pass

    def _answer(self, status: int, value: dict) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _take(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        if self.receiver.down:
            self._answer(503, {})
            return
        path = unquote(urlsplit(self.path).path)
        uploaded = re.fullmatch(r"/upload/([^/]+)/(.+)", path)
        if not uploaded and not self._let_in():
            self._answer(401, {"errors": [{"message": "unauthorized"}]})
            return
        with self.receiver.lock:
            if uploaded:
                self.receiver.upload(*uploaded.groups(), body)
                value = {}
            elif path == "/graphql":
                sent = json.loads(body)
                operation = re.search(r"(?:query|mutation)\s+(\w+)", sent["query"]).group(1)
                value = {"data": self.receiver.query(operation, sent.get("variables") or {})}
            elif streamed := re.fullmatch(r"/files/[^/]+/([^/]+)/([^/]+)/file_stream", path):
                project, name = streamed.groups()
                self.receiver.stream(self.receiver.run(name, project), json.loads(body))
                value = {"exitcode": None, "limits": {}}
            else:
                self.receiver.unknown.append(path)
                value = {}
        self._answer(200, value)

    def _let_in(self) -> bool:
        kind, _, secret = (self.headers.get("Authorization") or "").partition(" ")
        return kind == "Basic" and base64.b64decode(secret).decode().partition(":")[2] == self.receiver.key

    do_GET = do_POST = do_PUT = _take
