"""Refuse to run where another module hides one of widthlab's own packages.

Python takes a package from the first folder of `sys.path` that has one of its name. A user's own
`analysis.py` in the working directory or on PYTHONPATH would be imported in place of widthlab's.
This module stands outside the packages that it checks: it must be importable when they are not.
It is also the entry point `widthlab`.
"""

import os
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path

#: The folder that widthlab's packages lie in: site-packages, or a checkout.
HOME = Path(__file__).resolve().parent
#: Its packages, each of which imports those after it.
PACKAGES = ("widthlab", "orchestrator", "trainers", "analysis", "trialstore")

#: `trialstore.errors.BAD_INPUT`, which cannot be imported where a package is hidden.
BAD_INPUT = 2


class HiddenPackageError(ImportError):
    """Another module has the name of one of widthlab's packages and comes before it."""


def hiding_module(
    package: str, before: Sequence[str | os.PathLike[str]] = ()
) -> tuple[str, Path] | None:
    """Find a module that hides a package of widthlab's, or one that it imports.

    Args:
        package: One of PACKAGES.
        before: Folders searched before `sys.path`, as in a process that is started later.

    Returns:
        The name of the hidden package and the file or folder that hides it; None if none is.
    """
    searched = [*(os.fspath(folder) for folder in before), *sys.path]
    for name in PACKAGES[PACKAGES.index(package) :]:
        loaded = None if before else sys.modules.get(name)
        spec = loaded.__spec__ if loaded else PathFinder.find_spec(name, searched)
        # Nothing found: an editable installation, whose finder is asked after the path.
        place = None if spec is None else _place(spec)
        if place is not None and place != HOME / name:
            return name, place
    return None


def check_packages(package: str, before: Sequence[str | os.PathLike[str]] = ()) -> None:
    """Raise HiddenPackageError, which names the file, where `hiding_module` finds one."""
    found = hiding_module(package, before)
    if found is not None:
        name, place = found
        raise HiddenPackageError(
            f"{place} hides widthlab's own package {name!r}: rename it, or keep its folder out of "
            "PYTHONPATH and start from another working directory"
        )


def require_packages(package: str) -> None:
    """End the process with one message and exit code 2 where `hiding_module` finds one."""
    try:
        check_packages(package)
    except HiddenPackageError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(BAD_INPUT) from None


def main() -> None:
    """Run the command line."""
    require_packages("orchestrator")
    from orchestrator.cli.__main__ import main as run_command

    run_command()


def _place(spec: ModuleSpec) -> Path | None:
    """The folder of a package, or the file of a plain module."""
    if spec.submodule_search_locations is not None:
        return next((Path(folder).resolve() for folder in spec.submodule_search_locations), None)
    return None if spec.origin is None else Path(spec.origin).resolve()
