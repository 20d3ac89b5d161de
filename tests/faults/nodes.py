"""A Ray cluster of several raylets on this machine, each of which can be killed by itself."""

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import psutil

#: Seconds that a node gets to answer.
PATIENCE_S = 180.0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Node:
    """One `ray start --block`, which has its daemons as children."""

    process: "subprocess.Popen[bytes]"

    def daemons(self) -> list[psutil.Process]:
        try:
            return psutil.Process(self.process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return []

    def named(self, name: str) -> psutil.Process:
        """The daemon `raylet` or `gcs_server`."""
        for daemon in self.daemons():
            if daemon.name() == name:
                return daemon
        raise LookupError(f"node {self.process.pid} has no {name}")

    def end(self) -> None:
        """Kill everything of the node."""
        everything = self.daemons()
        self.process.kill()
        self.process.wait()
        for daemon in everything:
            try:
                daemon.kill()
            except psutil.NoSuchProcess:
                continue


@dataclass
class Nodes:
    """A head without CPUs, where the driver of no trial can be, and workers of one CPU each."""

    folder: Path
    variables: dict[str, str] = field(default_factory=dict)  # of the environment
    workers: int = 2
    port: int = field(default_factory=free_port)
    head: Node | None = None
    others: list[Node] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.sockets = tempfile.mkdtemp(prefix="fm-", dir="/tmp")  # their paths must be short
        self.environment = {
            **os.environ,
            **self.variables,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(16),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_DISABLE_IMPORT_WARNING": "1",
        }

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def start(self) -> None:
        self.head = self._node("--head", f"--port={self.port}", "--num-cpus=0")
        while len(self.others) < self.workers:
            self.add()

    def add(self) -> None:
        """A worker node of one CPU."""
        self.others.append(self._node(f"--address={self.address}", "--num-cpus=1"))

    def end(self) -> None:
        for node in [*self.others, *([self.head] if self.head else [])]:
            node.end()
        self.others, self.head = [], None
        shutil.rmtree(self.sockets, ignore_errors=True)

    def _node(self, *options: str) -> Node:
        path = self.folder / f"ray-{time.monotonic_ns()}.log"
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", *options]
        command += ["--disable-usage-stats", "--object-store-memory=100000000"]
        # Several nodes on one machine: what listens takes any port.
        command += ["--dashboard-agent-listen-port=0", "--min-worker-port=0", "--max-worker-port=0"]
        if "--head" in options:
            command += ["--include-dashboard=false", f"--temp-dir={self.sockets}"]
        with path.open("wb") as log:
            process = subprocess.Popen(
                command, stdout=log, stderr=log, env=self.environment, start_new_session=True
            )
        deadline = time.monotonic() + PATIENCE_S
        while b"Ray runtime started" not in path.read_bytes():
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"a Ray node did not start; see {path}")
            time.sleep(0.2)
        return Node(process)


def node_of(nodes: Nodes, pid: int) -> Node:
    """The node that a worker process runs on."""
    parents = {parent.pid for parent in psutil.Process(pid).parents()}
    for node in nodes.others:
        if node.process.pid in parents:
            return node
    raise LookupError(f"process {pid} is of no node")


def suspend(pid: int) -> None:
    """Returns once it has stopped: the signal may be long under way on a busy machine. Raises
    ProcessLookupError."""
    os.kill(pid, signal.SIGSTOP)
    try:
        while psutil.Process(pid).status() != psutil.STATUS_STOPPED:
            time.sleep(0.001)
    except psutil.NoSuchProcess as error:
        raise ProcessLookupError(str(error)) from error


def resume(pid: int) -> None:
    os.kill(pid, signal.SIGCONT)
