"""Make paths in environment variables absolute before other processes inherit them.

Ray and Tune run a trial in folders of their own. A relative path would name another place there,
so every trial would, for example, build its own cache.
"""

import os
import sys
from collections.abc import Mapping, MutableMapping
from pathlib import Path

from trialstore.errors import InputError

#: Bytes of the longest path of a Unix socket: the size of sun_path, less the NUL at its end.
LONGEST_SOCKET = (104 if sys.platform == "darwin" else 108) - 1
#: Ray puts its sockets below the first of these that is set, else below /tmp.
TEMPORARY = ("RAY_TMPDIR", "TMPDIR")
#: Variables with one path each, of widthlab and of the libraries that it uses.
PATHS = (
    *TEMPORARY, "WIDTHLAB_CACHE", "XDG_CACHE_HOME", "XDG_CONFIG_HOME",
    "HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_XET_CACHE", "HF_DATASETS_CACHE",
    "HF_MODULES_CACHE", "HF_TOKEN_PATH", "TRANSFORMERS_CACHE", "TORCH_HOME",
    "TORCH_EXTENSIONS_DIR", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR", "MPLCONFIGDIR",
    "AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE", "AWS_WEB_IDENTITY_TOKEN_FILE",
    "GOOGLE_APPLICATION_CREDENTIALS", "SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE",
    "CURL_CA_BUNDLE",
)  # fmt: skip
#: Those that decide where token stores are kept.
CACHES = ("WIDTHLAB_CACHE", "XDG_CACHE_HOME")
#: Variables with a list of paths each; an empty path is the current folder.
SEARCHED = ("PYTHONPATH",)


def make_absolute(environment: MutableMapping[str, str], folder: Path | None = None) -> None:
    """Make the relative paths in an environment absolute, in place.

    Args:
        environment: The environment, such as `os.environ`.
        folder: What the paths are relative to; None for the current folder.

    A path that begins with `~` stays, because the library that reads it expands it.
    """
    here = Path.cwd() if folder is None else folder
    for name in PATHS:
        if path := environment.get(name):
            environment[name] = _absolute(path, here)
    for name in TEMPORARY:
        if environment.get(name) == "":  # Ray would use the current folder
            del environment[name]
    for name in SEARCHED:
        if paths := environment.get(name):
            environment[name] = os.pathsep.join(
                _absolute(path, here) for path in paths.split(os.pathsep)
            )


def require_absolute(environment: Mapping[str, str]) -> None:
    """Raise InputError if a node's environment names a token cache by a relative path.

    A Ray that others have started has their environment, not that of the command. Every trial
    would look for such a cache below its own folder.
    """
    for name in CACHES:
        path = environment.get(name) or "/"
        if not path.startswith(("/", "~")):
            raise InputError(
                f"{name} {path!r} of this node's Ray is a relative path, and a trial runs in a "
                "folder of its own; start Ray on the node with an absolute one"
            )


def _absolute(path: str, folder: Path) -> str:
    return path if path.startswith("~") else str(folder / path)


def check_sockets(environment: Mapping[str, str], pid: int) -> None:
    """Raise InputError if the sockets of a Ray that process `pid` starts would have too long names.

    Ray itself would fail only after it has started several processes.
    """
    variable = next((name for name in TEMPORARY if environment.get(name)), None)
    temporary = environment[variable] if variable else "/tmp"
    # As Ray names them (ray._private.node): the longest of the names in a session.
    began = "2000-01-01_00-00-00_000000"
    socket = Path(temporary, "ray", f"session_{began}_{pid}", "sockets", "plasma_store").absolute()
    over = len(os.fsencode(socket)) - LONGEST_SOCKET
    if over > 0:
        room = len(os.fsencode(Path(temporary).absolute())) - over
        raise InputError(
            f"{variable or 'the folder for temporary files'} {temporary!r} is {over} bytes too "
            f"long for Ray, whose sockets below it would have names of more than the "
            f"{LONGEST_SOCKET} bytes that this system takes; set RAY_TMPDIR to a path of at most "
            f"{room} bytes, such as /tmp"
        )
