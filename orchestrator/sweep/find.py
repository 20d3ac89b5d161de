"""Find a sweep: its file, also among those that come with widthlab, its own code, its directory."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

import _widthlab
from orchestrator.sweep.config import SweepConfig
from orchestrator.sweep.load import load_sweep
from trialstore.errors import InputError
from trialstore.storage import Storage, open_storage

#: Said where a name means a shipped sweep: of the name and the file.
SHIPPED_NOTE = "there is no {} here; this is widthlab's own, {}"
#: The sweep files that come with widthlab.
SHIPPED = Path(__file__).parents[1] / "sweeps"


def find_sweep_file(path: str | Path) -> Path:
    """Return the path of a sweep file.

    A path that exists is returned as it is. A bare file name that does not exist in the working
    directory may name a sweep that comes with widthlab (`tiny.yaml`). A file of the user's is
    therefore never hidden.

    Raises:
        InputError: There is no such file, neither there nor among the shipped sweeps.
    """
    given = Path(path)
    if os.path.lexists(given):
        return given
    shipped = SHIPPED / given.name
    if given.name == str(given) and shipped.is_file():
        return shipped
    names = ", ".join(sorted(file.name for file in SHIPPED.glob("*.yaml")))
    raise InputError(
        f"sweep file {str(path)!r} cannot be read: there is no such file; give the path of a YAML "
        f"file, or the name of a sweep that comes with widthlab: {names}"
    )


def open_sweep(
    path: str | Path, overrides: Sequence[str], storage: str
) -> tuple[SweepConfig, Storage]:
    """Read a sweep file and open the sweep's directory, which need not exist yet.

    A sweep's own blocks become importable from the file's folder and the working directory.

    Args:
        path: A sweep file, as for `find_sweep_file`.
        overrides: `KEY=VALUE` settings, as for `orchestrator.sweep.load.load_sweep`.
        storage: The path or URL of the folder that sweeps are kept in.

    Raises:
        InputError: The file cannot be used, or a module beside it hides a package of widthlab's.
    """
    file = find_sweep_file(path)
    config = load_sweep(file, overrides)
    if config.has_own_block:
        _make_importable([file.resolve().parent, Path.cwd()])
    return config, open_storage(storage).child(config.name)


def _make_importable(folders: Sequence[Path]) -> None:
    """Put folders first on the module search path, here and in processes started later."""
    paths = list(dict.fromkeys(map(str, folders)))
    check_importable(paths)
    sys.path[:0] = [path for path in paths if path not in sys.path]
    os.environ["PYTHONPATH"] = os.pathsep.join(
        [*paths, *filter(None, [os.environ.get("PYTHONPATH")])]
    )


def check_importable(folders: Sequence[str]) -> None:
    """Raise InputError where modules in these folders would hide widthlab's own packages."""
    try:
        _widthlab.check_packages("orchestrator", folders)
    except _widthlab.HiddenPackageError as error:
        raise InputError(str(error)) from None
