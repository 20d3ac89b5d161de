"""The working directory that travels with a job: widthlab, the sweep file, own blocks, environment.

Data, checkpoints, results and virtual environments never travel. widthlab's source does, so a job
runs the version that submitted it. The cluster needs only widthlab's dependencies.
"""

import importlib.util
import os
import shlex
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import _widthlab
from orchestrator.sweep.config import SweepConfig
from trialstore.errors import InputError

#: Shell lines that set the driver's environment. The only file with secrets: Ray writes the
#: variables of a runtime environment into its logs.
ENVIRONMENT_FILE = "job.env"

#: Ray keeps packages in the memory of the head. widthlab alone is about 1 MiB.
LARGEST = 16 * 2**20  # bytes

#: widthlab as it is installed here: its packages, and the module that checks them.
WIDTHLAB = (*(_widthlab.HOME / name for name in _widthlab.PACKAGES), Path(_widthlab.__file__))


def fill(
    folder: Path, sweep_file: Path, blocks: Sequence[Path], environment: Mapping[str, str]
) -> Path:
    """Copy a job's files into an empty folder.

    Args:
        folder: The empty folder.
        sweep_file: The sweep file.
        blocks: Modules and packages with own blocks, as `own_modules` finds them.
        environment: The driver's variables, which may be secret.

    Returns:
        The path of the sweep file within `folder`.

    Raises:
        InputError: The files are larger than `LARGEST`.
    """
    for source in WIDTHLAB:
        _copy(source, folder, "*")
    for block in blocks:
        _copy(block, folder, "*.py")
    # The suffix keeps a sweep file named `analysis` from replacing the package.
    named = Path(sweep_file.stem + ".yaml")
    shutil.copyfile(sweep_file, folder / named)
    _check_size(folder)
    write_environment(folder / ENVIRONMENT_FILE, environment)
    return named


def own_modules(config: SweepConfig, folders: Sequence[Path]) -> list[Path]:
    """Find the modules and packages of a sweep's own blocks.

    Args:
        config: The sweep.
        folders: Where to look; the first match wins.

    Returns:
        Files and package folders to copy. An installed package is left out: it must be installed
        on the cluster too.

    Raises:
        InputError: A module is nowhere, or has the name of one of widthlab's packages.
    """
    found = []
    for name in sorted({path.partition(":")[0].partition(".")[0] for path in _blocks(config)}):
        if name in (*_widthlab.PACKAGES, _widthlab.__name__):
            raise InputError(
                f"model.block: {name} is the name of one of widthlab's packages; rename yours"
            )
        places = [place for folder in folders for place in (folder / name, folder / f"{name}.py")]
        here = next((place for place in places if place.exists()), None)
        if here is not None:
            found.append(here)
        elif not _is_installed(name):
            looked = ", ".join(str(folder) for folder in folders)
            raise InputError(
                f"model.block: there is no module {name} in {looked}, and none is installed"
            )
    return found


def _is_installed(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ValueError:  # __main__ is the running program, which a job cannot import
        return False


def _blocks(config: SweepConfig) -> Iterator[str]:
    """Return every `package.module:Class` in the cells of a sweep."""
    overridden = (override.set.get("block") for override in config.overrides)
    for block in (config.model.block, *config.grid.get("block", ()), *overridden):
        if block is not None:
            yield block


def _copy(source: Path, folder: Path, pattern: str) -> None:
    """Copy a module, or the matching files of a package without caches and hidden files."""
    if source.is_file():
        shutil.copyfile(source, folder / source.name)
        return
    for path in source.rglob(pattern):
        inside = path.relative_to(source.parent)
        hidden = any(part.startswith((".", "__pycache__")) for part in inside.parts)
        if path.is_file() and not hidden:
            target = folder / inside
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)


def _check_size(folder: Path) -> None:
    sizes = {path: path.stat().st_size for path in folder.rglob("*") if path.is_file()}
    total = sum(sizes.values())
    if total > LARGEST:
        largest = max(sizes, key=sizes.__getitem__)
        raise InputError(
            f"the job's files have {total / 2**20:.1f} MiB, more than the "
            f"{LARGEST / 2**20:.0f} MiB that the Ray head should keep in memory; the largest is "
            f"{largest.relative_to(folder)} with {sizes[largest] / 2**20:.1f} MiB. Keep only the "
            "block's source in its package, or install the package on the cluster and submit from "
            "another folder"
        )


def write_environment(path: Path, environment: Mapping[str, str]) -> None:
    """Write the variables as `export` lines, with mode 0600. Ray keeps the mode when unpacking."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with open(descriptor, "w", encoding="utf-8") as file:
        for name, value in environment.items():
            file.write(f"export {name}={shlex.quote(value)}\n")
