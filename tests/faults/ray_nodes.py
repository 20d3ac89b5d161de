"""Several Ray nodes on this machine: a raylet each, started as a site would, on ports and in a
folder of their own, with token authentication. Only they are ever stopped, by their process ids."""

import contextlib
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil

from .fault_sweep import ROOT
from .nodes import free_port

RAY = [sys.executable, "-m", "ray.scripts.scripts"]
PATIENCE_S = 900
#: Between two looks, so that looking does not take the cores that the nodes need.
LOOK_S = 0.5


class Nodes:
    """A head without CPUs, and the nodes that a test adds to it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = {
            **os.environ,
            "PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}".rstrip(
                os.pathsep
            ),
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            "RAY_USAGE_STATS_ENABLED": "0",
            "OMP_NUM_THREADS": "1",
        }
        self.processes: dict[str, subprocess.Popen] = {}
        self._start(
            "head",
            *["--head", "--port=0", f"--ray-client-server-port={free_port()}"],
            *["--include-dashboard=false", "--num-cpus=0"],
        )
        self.address = (folder / "ray_current_cluster").read_text().strip()

    def add(self, name: str, *options: str, prefix: Sequence[str] = ()) -> None:
        """Add a node; `prefix` is a command that its processes run under."""
        self._start(name, f"--address={self.address}", *options, prefix=prefix)

    def _start(self, name: str, *options: str, prefix: Sequence[str] = ()) -> None:
        path = self.folder / f"{name}.log"
        with path.open("wb") as log:
            self.processes[name] = subprocess.Popen(
                [
                    *[*prefix, *RAY, "start", "--block", "--disable-usage-stats"],
                    *[f"--node-name={name}", f"--temp-dir={self.folder}", *options],
                    *["--object-store-memory=100000000", "--dashboard-agent-listen-port=0"],
                    *["--min-worker-port=0", "--max-worker-port=0"],
                ],
                env=self.environment, stdout=log, stderr=subprocess.STDOUT,
            )  # fmt: skip
        wait_for(lambda: b"Ray runtime started" in path.read_bytes(), self)

    def kill(self, name: str) -> None:
        """A node goes as it does when its machine is lost: all of its processes at once."""
        process = self.processes.pop(name)
        family = [*_family(process.pid)]
        for member in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                member.kill()
        process.wait()

    def stop(self) -> None:
        """Nodes first, the head last."""
        for name in reversed(list(self.processes)):
            family = _family(self.processes[name].pid)
            self.processes[name].send_signal(signal.SIGTERM)
            _, alive = psutil.wait_procs(family, timeout=20)
            for member in alive:
                with contextlib.suppress(psutil.NoSuchProcess):
                    member.kill()
            self.processes.pop(name).wait()

    def working(self) -> dict[str, set[str]]:
        """What the processes of every node are at, by Ray's names for it."""
        found: dict[str, set[str]] = {}
        for name, process in self.processes.items():
            titles = set()
            for member in _family(process.pid):
                with contextlib.suppress(psutil.Error, IndexError):
                    titles.add(member.cmdline()[0])
            found[name] = {title for title in titles if title.startswith("ray::")}
        return found


@contextlib.contextmanager
def nodes() -> Iterator[Nodes]:
    # Ray's sockets lie in there, and their paths must be short.
    folder = Path(tempfile.mkdtemp(prefix="rn-", dir="/tmp"))
    made = None
    try:
        made = Nodes(folder)
        yield made
    finally:
        if made is not None:
            made.stop()
        shutil.rmtree(folder, ignore_errors=True)


class Seen:
    """Which rank of which trial has been seen at work on which node, and what with it."""

    def __init__(self) -> None:
        self.ranks: dict[tuple[str, int], set[str]] = {}
        self.beside: set[frozenset[str]] = set()

    def look(self, nodes: Nodes) -> None:
        now = set()
        for node, titles in nodes.working().items():
            for title in titles:
                rank = re.search(r"(\w{12}) rank (\d+)", title)
                if rank:
                    self.ranks.setdefault((rank[1], int(rank[2])), set()).add(node)
                    now.add(f"{rank[1]} on {node}")
                elif "TrialActor.train" in title:  # of one worker, or it waits for several
                    now.add(f"Tune's actor on {node}")
        self.beside.add(frozenset(now))

    def table(self) -> str:
        lines = [
            f"trial {trial} rank {rank}: {', '.join(sorted(where))}"
            for (trial, rank), where in sorted(self.ranks.items())
        ]
        return "\n".join([*lines, "side by side: " + "; ".join(
            sorted(", ".join(sorted(group)) for group in self.beside if len(group) > 1)
        )])  # fmt: skip


def wait_for(condition: object, nodes: Nodes) -> None:
    """Until a condition holds. Fails where a node has ended."""
    assert callable(condition)
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        for name, process in nodes.processes.items():
            assert process.poll() is None, (nodes.folder / f"{name}.log").read_text()
        assert time.monotonic() < deadline
        time.sleep(LOOK_S)


def _family(pid: int) -> list[psutil.Process]:
    with contextlib.suppress(psutil.NoSuchProcess):
        parent = psutil.Process(pid)
        return [*parent.children(recursive=True), parent]
    return []
