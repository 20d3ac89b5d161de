"""Pin names on the Hugging Face hub to commits, so that a sweep keeps its data."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, TypeVar

from trainers.data import sources
from trainers.data.paths import user_path
from trialstore.errors import InputError, NoAnswerError
from trialstore.storage import is_away

_Pinnable = TypeVar("_Pinnable", sources.HubDataset, sources.PretrainedTokenizer)


def pin(source: sources.DataSource) -> sources.DataSource:
    """Return the source with hub revisions resolved to commits and local paths made absolute.

    A sweep pins its source once and stores the result, so all its trials use the same data and need
    no network to agree.

    Raises:
        InputError: the hub does not know a name or cannot be reached, or a local path cannot be
            used.
    """
    corpus, tokenizer = source.corpus, source.tokenizer
    if isinstance(corpus, sources.TextFiles):
        absolute = {"paths": _absolute(corpus.paths)}
        if isinstance(corpus.heldout, list):
            absolute["heldout"] = _absolute(corpus.heldout)
        corpus = corpus.model_copy(update=absolute)
    elif isinstance(corpus, sources.HubDataset):
        corpus = _pinned(corpus, "dataset", "corpus hub", "dataset")
    if isinstance(tokenizer, sources.PretrainedTokenizer):
        tokenizer = _pinned(tokenizer, "path", "tokenizer pretrained", "model")
    return sources.DataSource(corpus=corpus, tokenizer=tokenizer)


def _pinned(
    section: _Pinnable, key: str, what: str, kind: Literal["dataset", "model"]
) -> _Pinnable:
    """Replace a local folder in `key` by its absolute path, or the revision by its commit."""
    name = getattr(section, key)
    if folder := local_folder(what, name):
        return section.model_copy(update={key: str(folder)})
    revision = resolve_revision(kind, name, section.revision)
    return section.model_copy(update={"revision": revision})


def _absolute(paths: list[str]) -> list[str]:
    return [str(user_path("corpus text", path).absolute()) for path in paths]


def local_folder(what: str, name: str) -> Path | None:
    """Return the absolute local folder that a name stands for, or None if it is a hub id.

    Args:
        what: the setting that holds the name, for messages.
        name: a folder, or OWNER/NAME.

    Raises:
        InputError: the name is a file, or neither an existing folder nor a possible hub id.
    """
    path = user_path(what, name)
    if path.is_dir():
        return path.absolute()
    if path.exists():
        raise InputError(
            f"{what}: {name!r} is a file; give the folder that holds it, or a hub id OWNER/NAME"
        )
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise InputError(
            f"{what}: no folder {name!r} (looked for {path.absolute()}), and the name is no hub "
            "id; give an existing folder, or a hub id OWNER/NAME"
        )
    return None


def is_commit(revision: str | None) -> bool:
    """Return whether a revision is a full commit hash, which always means the same content."""
    return revision is not None and re.fullmatch(r"[0-9a-f]{40}", revision) is not None


def resolve_revision(kind: Literal["dataset", "model"], name: str, revision: str | None) -> str:
    """Return the commit hash of a branch or tag of a hub repository.

    A full commit hash is returned as it is, without a request.

    Args:
        kind: the kind of repository.
        name: OWNER/NAME.
        revision: branch, tag or commit; None for the default branch.

    Raises:
        InputError: the hub does not know the name or the revision.
        NoAnswerError: the hub cannot be reached.
    """
    if revision is not None and is_commit(revision):
        return revision
    from huggingface_hub import HfApi

    api = HfApi()
    try:
        info = (
            api.dataset_info(name, revision=revision, timeout=20)
            if kind == "dataset"
            else api.model_info(name, revision=revision, timeout=20)
        )
    except errors_of_the_client() as error:
        at = f" at revision {revision!r}" if revision else ""
        kind_of_error = NoAnswerError if gave_no_answer(error) else InputError
        raise kind_of_error(
            f"{kind} {name!r}{at}: no local folder has that name, and the Hugging Face hub gave "
            f"no answer ({type(error).__name__}: {_first_line(error)}); check the name, the "
            "network and HF_TOKEN, or give a local folder or a full commit hash as revision"
        ) from error
    if info.sha is None:
        raise InputError(
            f"{kind} {name!r}: the hub returned no commit; set revision to a commit hash"
        )
    return str(info.sha)


def errors_of_the_client() -> tuple[type[Exception], ...]:
    """Return the exceptions that the hub's client raises for any failed request.

    If no server answers, the client lets the exceptions of its HTTP library through. It has changed
    that library twice; the bases of its own error cover all of them. ValueError: an answer or a
    name that cannot be read.
    """
    from huggingface_hub.errors import HfHubHTTPError

    bases: tuple[Any, ...] = HfHubHTTPError.__bases__
    return (*bases, OSError, ValueError)


def gave_no_answer(error: BaseException) -> bool:
    """Return whether a request to the hub failed because no server answered.

    The libraries above the client wrap its errors, so the causes of an error are looked at too.

    Returns:
        True for a lost connection, a timeout, too many requests (429) and an error of the server
        (5xx). False for any other answer, and for requests that HF_HUB_OFFLINE forbids.
    """
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    http, *_ = errors_of_the_client()
    causes = list(_causes(error))
    if any(isinstance(cause, OfflineModeIsEnabled) for cause in causes):
        return False
    for cause in causes:
        status = getattr(getattr(cause, "response", None), "status_code", None)
        if isinstance(cause, HfHubHTTPError) or status is not None:
            return status is not None and (status == 429 or status >= 500)
    away = (http, ConnectionError, TimeoutError)
    return any(isinstance(cause, away) or is_away(cause) for cause in causes)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error, its cause, the cause's cause, and so on."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or ["no message"])[0]
