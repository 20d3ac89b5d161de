"""Variables of the environment that name paths, made absolute before other processes inherit them.

Ray and Tune run a trial in folders of their own: a relative path would mean another place there,
and a cache of its own for every trial.
"""

import os
import sys
from collections.abc import Mapping, MutableMapping
from pathlib import Path

from trialstore.errors import InputError

#: Bytes of a socket's path: what sockaddr_un holds, less the NUL at its end.
LONGEST_SOCKET = (104 if sys.platform == "darwin" else 108) - 1
#: Where Ray puts its sockets: the first of them that is set, else in /tmp.
TEMPORARY = ("RAY_TMPDIR", "TMPDIR")
#: Of widthlab, and of what it trains, reads and stores with.
PATHS = (
    *TEMPORARY, "WIDTHLAB_CACHE", "XDG_CACHE_HOME", "XDG_CONFIG_HOME",
    "HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_XET_CACHE", "HF_DATASETS_CACHE",
    "HF_MODULES_CACHE", "HF_TOKEN_PATH", "TRANSFORMERS_CACHE", "TORCH_HOME",
    "TORCH_EXTENSIONS_DIR", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR", "MPLCONFIGDIR",
    "AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE", "AWS_WEB_IDENTITY_TOKEN_FILE",
    "GOOGLE_APPLICATION_CREDENTIALS", "SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE",
    "CURL_CA_BUNDLE",
)  # fmt: skip
#: Those of them that say where token stores are kept.
CACHES = ("WIDTHLAB_CACHE", "XDG_CACHE_HOME")
#: Several paths each, an empty one being the current folder.
SEARCHED = ("PYTHONPATH",)


def make_absolute(environment: MutableMapping[str, str], folder: Path | None = None) -> None:
    """Paths that are relative to `folder`, by default the current one, become absolute.

    One that begins with `~` is left to whoever expands it.
    """
    here = Path.cwd() if folder is None else folder
    for name in PATHS:
        if path := environment.get(name):
            environment[name] = _absolute(path, here)
    for name in TEMPORARY:
        if environment.get(name) == "":  # Ray would take it for the current folder
            del environment[name]
    for name in SEARCHED:
        if paths := environment.get(name):
            environment[name] = os.pathsep.join(
                _absolute(path, here) for path in paths.split(os.pathsep)
            )


def require_absolute(environment: Mapping[str, str]) -> None:
    """Raises InputError where a node gives its trials a cache that each would look for elsewhere:
    a Ray that was started by others has their environment, not the command's."""
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
    """Raises InputError where the sockets of a Ray that process `pid` starts would have names that
    are longer than the system takes, before anything of it is started."""
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
