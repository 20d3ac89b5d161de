"""The folder that a job is sent with: widthlab itself, the sweep file, own blocks, environment.

It is built of what a job needs and nothing else, so data, checkpoints, results and virtual
environments never travel. widthlab travels too: the job runs the very version that submitted it,
whatever is installed on the cluster, and only what widthlab depends on has to be there.
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

#: Shell lines that set the environment of the driver. Secrets are in it and nowhere else: Ray
#: writes what is in a runtime environment into its logs.
ENVIRONMENT_FILE = "job.env"

#: Ray keeps packages in the memory of the head. widthlab alone is about 1 MiB.
LARGEST = 16 * 2**20  # bytes

#: widthlab as it is installed here: its packages, and the module that checks them.
WIDTHLAB = (*(_widthlab.HOME / name for name in _widthlab.PACKAGES), Path(_widthlab.__file__))


def fill(
    folder: Path, sweep_file: Path, blocks: Sequence[Path], environment: Mapping[str, str]
) -> Path:
    """Put a job's files into an empty folder; the sweep file's path within it.

    `blocks` are modules of the user's own, as `own_modules` finds them. Raises InputError where
    all of it is larger than Ray should carry.
    """
    for source in WIDTHLAB:
        _copy(source, folder, "*")
    for block in blocks:
        _copy(block, folder, "*.py")
    # Ending in .yaml it takes no package's place.
    named = Path(sweep_file.stem + ".yaml")
    shutil.copyfile(sweep_file, folder / named)
    _check_size(folder)
    write_environment(folder / ENVIRONMENT_FILE, environment)
    return named


def own_modules(config: SweepConfig, folders: Sequence[Path]) -> list[Path]:
    """The modules and packages that hold a sweep's own blocks, looked for in `folders`.

    One that is installed here is left out: it has to be installed on the cluster too. Raises
    InputError for one that is nowhere, or that has the name of a package of widthlab's.
    """
    found = []
    for name in sorted({path.partition(":")[0].partition(".")[0] for path in _blocks(config)}):
        if name in (*_widthlab.PACKAGES, _widthlab.__name__):
            raise InputError(f"model.block: {name} is a package of widthlab; rename yours")
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
    except ValueError:  # __main__: whatever was called, and none that a job could import
        return False


def _blocks(config: SweepConfig) -> Iterator[str]:
    """Every `package.module:Class` that some cell of a sweep has."""
    overridden = (override.set.get("block") for override in config.overrides)
    for block in (config.model.block, *config.grid.get("block", ()), *overridden):
        if block is not None:
            yield block


def _copy(source: Path, folder: Path, pattern: str) -> None:
    """Copy a module, or of a package the files that match, without caches and hidden ones."""
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
            f"the job's files come to {total / 2**20:.1f} MiB, and Ray's head should keep at most "
            f"{LARGEST / 2**20:.0f}; the largest is {largest.relative_to(folder)} with "
            f"{sizes[largest] / 2**20:.1f} MiB. Keep only the block's source in its package, or "
            "install the package on the cluster and submit from another folder"
        )


def write_environment(path: Path, environment: Mapping[str, str]) -> None:
    """Readable by its owner alone, also where Ray unpacks it: Ray keeps a file's mode."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with open(descriptor, "w", encoding="utf-8") as file:
        for name, value in environment.items():
            file.write(f"export {name}={shlex.quote(value)}\n")
