"""Python imports this by itself, in every process of a sweep whose PYTHONPATH names this folder.

Wherever a trial is trained, each update is written to a file: the trial, the process, and the step
that it reached. The program under test is as it was, and knows nothing of it.
"""

import importlib.machinery
import importlib.util
import os
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any

TRAINING = "trainers.train"
LOG = "FAULT_MATRIX_UPDATES"


class CountingLoader(importlib.machinery.SourceFileLoader):
    """Wraps `update` of the module once it is loaded."""

    def exec_module(self, module: ModuleType) -> None:
        super().exec_module(module)
        update = module.update

        def counted(engine: Any, spec: Any, store: Any, ranks: Any, step: int) -> Any:
            done = update(engine, spec, store, ranks, step)
            if ranks.is_first:
                line = f"{spec.id} {os.getpid()} {step + 1}\n"
                log = os.open(os.environ[LOG], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
                os.write(log, line.encode())  # whole, or not at all if it is killed
                os.close(log)
            return done

        module.update = counted  # type: ignore[attr-defined]


class Finder(importlib.machinery.PathFinder):
    """Finds the training loop, and nothing else."""

    @classmethod
    def find_spec(
        cls, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != TRAINING:
            return None
        found = super().find_spec(fullname, path, target)
        if found is None or found.origin is None:
            return None
        loader = CountingLoader(fullname, found.origin)
        return importlib.util.spec_from_file_location(fullname, found.origin, loader=loader)


sys.meta_path.insert(0, Finder)
