"""The tokens of a sweep as far as they are known before it runs; a plan asks no hub."""

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

#: In the place of tokens that are not known yet: equal for all trials of a plan.
NOT_FETCHED = DataSpec(corpus_fingerprint="not fetched", tokenizer_hash="not fetched")


@dataclass(frozen=True)
class PlannedData:
    """Which tokens, and how many rows the embedding has; `known` is whether these are the tokens
    that a run would have, and its trials so their ids. `contents` is what the corpus holds, None
    where this machine does not know."""

    data: DataSpec
    vocab_size: int
    known: bool
    contents: Contents | None = None


def planned_data(config: SweepConfig, sweep: Storage) -> PlannedData:
    """What this machine and the sweep's own directory tell. Raises InputError where not even the
    vocabulary is known."""
    before = last_run(sweep)
    source = as_pinned(config.source, before)
    found = resolve(source)
    known = found.data or _of_the_last_run(source, before)
    return PlannedData(known or NOT_FETCHED, found.vocab_size, known is not None, found.contents)


def last_run(sweep: Storage) -> Mapping[str, Any]:
    """Return the sweep.yaml of the last run of a sweep; empty if there was no run."""
    with contextlib.suppress(InputError):
        return read_sweep_file(sweep).content
    return {}


def as_pinned(source: DataSource, before: Mapping[str, Any]) -> DataSource:
    """The source with the hub revisions that a run of the sweep took, if the rest is the same."""
    sections: dict[str, Any] = {}
    for section, typed in (("corpus", source.corpus), ("tokenizer", source.tokenizer)):
        with contextlib.suppress(ValidationError):
            kept = type(typed).model_validate(before.get(section))
            if typed == kept.model_copy(update={"revision": None}):
                sections[section] = kept
    return source.model_copy(update=sections)


def _of_the_last_run(source: DataSource, before: Mapping[str, Any]) -> DataSpec | None:
    """The tokens that a run of the sweep had, where they are those of commits of the hub: this
    machine need not have them."""
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
