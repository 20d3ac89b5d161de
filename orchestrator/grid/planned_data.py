"""Find out what is known of a sweep's tokens before it runs, without asking the hub."""

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from orchestrator.sweep.config import SweepConfig
from trainers.data.at_hand import resolve
from trainers.data.contents import Contents
from trainers.data.hub import is_commit
from trainers.data.sources import DataSource, DataSpec, HubDataset, PretrainedTokenizer
from trialstore.errors import InputError
from trialstore.storage import Storage
from trialstore.sweep_file import read_sweep_file

#: Placeholder for unknown tokens, the same for all trials of a plan.
NOT_FETCHED = DataSpec(corpus_fingerprint="not fetched", tokenizer_hash="not fetched")


@dataclass(frozen=True)
class PlannedData:
    """The tokens of a planned sweep.

    Attributes:
        data: Fingerprint of the corpus and hash of the tokenizer, or `NOT_FETCHED`.
        vocab_size: Rows of the embedding.
        known: Whether a run would use these tokens; only then are the plan's ids those of a run.
        contents: Documents, bytes and tokens of the corpus; None if unknown on this machine.
    """

    data: DataSpec
    vocab_size: int
    known: bool
    contents: Contents | None = None


def planned_data(config: SweepConfig, sweep: Storage) -> PlannedData:
    """Look for the tokens of a sweep on this machine and in the sweep's directory.

    Raises:
        InputError: Not even the size of the vocabulary is known.
    """
    before = last_run(sweep)
    source = as_pinned(config.source, before)
    found = resolve(source)
    known = found.data or _of_the_last_run(source, before)
    return PlannedData(known or NOT_FETCHED, found.vocab_size, known is not None, found.contents)


def last_run(sweep: Storage) -> Mapping[str, Any]:
    """Return the sweep.yaml of the last run of a sweep; empty if there was none."""
    with contextlib.suppress(InputError):
        return read_sweep_file(sweep).content
    return {}


def as_pinned(source: DataSource, before: Mapping[str, Any]) -> DataSource:
    """Return the source with the hub revisions of the last run, if the rest is unchanged.

    `before` is the sweep.yaml of the last run.
    """
    sections: dict[str, Any] = {}
    for section, typed in (("corpus", source.corpus), ("tokenizer", source.tokenizer)):
        with contextlib.suppress(ValidationError):
            kept = type(typed).model_validate(before.get(section))
            if typed == kept.model_copy(update={"revision": None}):
                sections[section] = kept
    return source.model_copy(update=sections)


def _of_the_last_run(source: DataSource, before: Mapping[str, Any]) -> DataSpec | None:
    """The tokens of the last run, if corpus and tokenizer are commits on the hub.

    Commits do not change, so the tokens are known without having them on this machine.
    """
    corpus, tokenizer = source.corpus, source.tokenizer
    fixed = isinstance(corpus, HubDataset) and is_commit(corpus.revision)
    if isinstance(tokenizer, PretrainedTokenizer):
        fixed = fixed and is_commit(tokenizer.revision)
    if not fixed or not source.model_dump(mode="json").items() <= before.items():
        return None
    with contextlib.suppress(ValidationError):
        return DataSpec.model_validate(
            {name: before["resolved"].get(name) for name in DataSpec.model_fields}
        )
    return None
