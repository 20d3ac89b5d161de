"""Pinning: a name on the Hugging Face hub means what its commit held, not what it holds today."""

import re
from pathlib import Path
from typing import Any, Literal

from trainers.data import sources
from trainers.data.paths import user_path
from trialstore.errors import InputError


def pin(source: sources.DataSource) -> sources.DataSource:
    """The same source with hub revisions resolved to commits and local paths made absolute.

    A sweep pins once and stores the result, so that its trials need no network to agree.
    Raises InputError where the hub does not know the name or cannot be reached.
    """
    corpus, tokenizer = source.corpus, source.tokenizer
    if isinstance(corpus, sources.TextFiles):
        absolute = {"paths": _absolute(corpus.paths)}
        if isinstance(corpus.heldout, list):
            absolute["heldout"] = _absolute(corpus.heldout)
        corpus = corpus.model_copy(update=absolute)
    elif isinstance(corpus, sources.HubDataset):
        if folder := local_folder("corpus hub", corpus.dataset):
            corpus = corpus.model_copy(update={"dataset": str(folder)})
        else:
            revision = resolve_revision("dataset", corpus.dataset, corpus.revision)
            corpus = corpus.model_copy(update={"revision": revision})
    if isinstance(tokenizer, sources.PretrainedTokenizer):
        if folder := local_folder("tokenizer pretrained", tokenizer.path):
            tokenizer = tokenizer.model_copy(update={"path": str(folder)})
        else:
            revision = resolve_revision("model", tokenizer.path, tokenizer.revision)
            tokenizer = tokenizer.model_copy(update={"revision": revision})
    return sources.DataSource(corpus=corpus, tokenizer=tokenizer)


def _absolute(paths: list[str]) -> list[str]:
    return [str(user_path("corpus text", path).absolute()) for path in paths]


def local_folder(what: str, name: str) -> Path | None:
    """The folder that a name stands for, or None where it must be a hub id.

    `what` is the thing that is named, for messages. Raises InputError for a name of neither kind.
    """
    path = user_path(what, name)
    if path.is_dir():
        return path.absolute()
    if path.exists():
        raise InputError(f"{what}: {name!r} is a file; give the folder that holds it, or a hub id")
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise InputError(
            f"{what}: no folder {name!r} (looked for {path.absolute()}), and it cannot be a "
            "hub id, which is written OWNER/NAME"
        )
    return None


def is_commit(revision: str | None) -> bool:
    """Whether a revision says what it holds by itself: a whole commit hash."""
    return revision is not None and re.fullmatch(r"[0-9a-f]{40}", revision) is not None


def resolve_revision(kind: Literal["dataset", "model"], name: str, revision: str | None) -> str:
    """The commit hash of a branch or tag of a hub repository; a commit stays as it is."""
    if revision is not None and is_commit(revision):
        return revision
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    # The hub's client does not wrap what its HTTP library raises where no server answers, and
    # has changed that library twice; the bases of its own error are what it has in common.
    unreachable: tuple[Any, ...] = (*HfHubHTTPError.__bases__, OSError, ValueError)
    api = HfApi()
    try:
        info = (
            api.dataset_info(name, revision=revision, timeout=20)
            if kind == "dataset"
            else api.model_info(name, revision=revision, timeout=20)
        )
    except unreachable as error:
        at = f" at revision {revision!r}" if revision else ""
        raise InputError(
            f"{kind} {name!r}{at}: no folder of that name, and the Hugging Face hub does not "
            f"answer for it ({type(error).__name__}: {_first_line(error)}); check the name, the "
            "network and HF_TOKEN, or give a local folder or a full commit hash as revision"
        ) from error
    if info.sha is None:
        raise InputError(f"{kind} {name!r}: the hub gives no commit; set revision to a commit hash")
    return str(info.sha)


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or ["no message"])[0]
