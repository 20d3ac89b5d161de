"""A stand-in for the dashboard of a Ray head: as much of its HTTP as Ray's job client uses."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import ray


@dataclass
class Head:
    """What the server has been told, and what it says."""

    address: str = ""
    #: Answers that take the place of the right ones, by path: status and body.
    instead: dict[str, tuple[int, str]] = field(default_factory=dict)
    jobs: dict[str, dict[str, Any]] = field(default_factory=dict)
    packages: dict[str, bytes] = field(default_factory=dict)
    logs: dict[str, str] = field(default_factory=dict)
    #: How the next requests to start a job go wrong: before the job is taken, or after.
    trouble: list[str] = field(default_factory=list)
    stopped: list[str] = field(default_factory=list)
    asked: list[tuple[str, str]] = field(default_factory=list)  # method and path

    def add(self, job_id: str, status: str, **details: Any) -> None:
        """A job of the sweep `s` below /shared."""
        metadata = {"widthlab_sweep": "s", "widthlab_storage": "/shared"}
        self.jobs[job_id] = {
            "type": "SUBMISSION", "submission_id": job_id, "entrypoint": "", "status": status,
            "metadata": metadata, "start_time": 1_700_000_000_000, **details,
        }  # fmt: skip

    def answer(self, method: str, path: str, body: bytes) -> tuple[int, str]:
        self.asked.append((method, path))
        for start, instead in self.instead.items():
            if path.startswith(start):
                return instead
        parts = path.strip("/").split("/")
        match method, parts:
            case "GET", ["api", "version"]:
                return 200, json.dumps({"version": "4", "ray_version": ray.__version__})
            case "GET", ["api", "packages", _, name]:
                return (200 if name in self.packages else 404), ""
            case "PUT", ["api", "packages", _, name]:
                self.packages[name] = body
                return 200, ""
            case "POST", ["api", "jobs"]:
                request = json.loads(body)
                job_id = request["submission_id"]
                trouble = self.trouble.pop(0) if self.trouble else None
                if trouble != "before":
                    assert job_id not in self.jobs
                    self.add(job_id, "PENDING", **{k: v for k, v in request.items() if v})
                if trouble:
                    return 500, "No available agent to submit job"
                return 200, json.dumps({"job_id": job_id, "submission_id": job_id})
            case "GET", ["api", "jobs"]:
                return 200, json.dumps(list(self.jobs.values()))
            case "GET", ["api", "jobs", job_id] if job_id in self.jobs:
                return 200, json.dumps(self.jobs[job_id])
            case "GET", ["api", "jobs", job_id, "logs"] if job_id in self.jobs:
                return 200, json.dumps({"logs": self.logs.get(job_id, "")})
            case "POST", ["api", "jobs", job_id, "stop"] if job_id in self.jobs:
                self.stopped.append(job_id)
                self.jobs[job_id] |= {"status": "STOPPED", "end_time": 1_700_000_009_000}
                return 200, json.dumps({"stopped": True})
        return 404, f"no {path}"


@contextmanager
def serving(head: Head) -> Iterator[Head]:
    """Answer for `head` on a free port of this machine."""

    class Handler(BaseHTTPRequestHandler):
        def _serve(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            status, text = head.answer(self.command, self.path, body)
            self.send_response(status)
            self.send_header("Content-Length", str(len(text.encode())))
            self.end_headers()
            self.wfile.write(text.encode())

        do_GET = do_PUT = do_POST = _serve  # noqa: N815

        def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    head.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield head
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
