"""Every update that a sweep's trials were trained for, and which of them were done again."""

import os
from collections import defaultdict
from pathlib import Path

from .in_every_process.sitecustomize import LOG

FOLDER = Path(__file__).parent / "in_every_process"


def counting(log: Path) -> dict[str, str]:
    """Variables of the environment of processes whose updates are written to `log`."""
    path = [str(FOLDER), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {"PYTHONPATH": os.pathsep.join(path), LOG: str(log.absolute())}


def read_updates(log: Path) -> dict[str, list[tuple[int, int]]]:
    """Of every trial (process, step that its update reached), as they came."""
    found: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for line in log.read_text().splitlines():
        trial_id, pid, step = line.split()
        found[trial_id].append((int(pid), int(step)))
    return found


def updates_lost(updates: list[tuple[int, int]]) -> list[int]:
    """Of every attempt at the trial but the first: how far it began behind what had been reached.

    What a process that was replaced still does beside its successor has no part in it.
    """
    lost = []
    newest = reached = 0
    last: dict[int, int] = {}  # step of every process
    for pid, step in updates:
        if last.get(pid) != step - 1:  # an attempt begins
            if last:
                lost.append(reached - (step - 1))
            newest = pid
        if pid == newest:
            reached = step
        last[pid] = step
    return lost
