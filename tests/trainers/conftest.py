"""Tiny trials: one small text corpus, tokenised once for the whole session."""

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from gpt2_spec import with_fields
from torch import Tensor

from trainers.data.sources import BytesTokenizer, DataSource, TextFiles
from trainers.data.store import open_store
from trainers.engine.engine import start_ranks
from trainers.models.build import build
from trainers.models.decoder import Decoder
from trainers.models.model_spec import ModelSpec
from trainers.spec import TrialSpec
from trialstore import records
from trialstore.storage import LocalStorage

#: Columns that depend on the clock; all others of a resumed trial are equal bit for bit.
CLOCK_COLUMNS = ["time_ms", "tokens_per_s", "mfu"]

MakeSpec = Callable[..., TrialSpec]


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """As a trial of one CPU runs, so that tests and their subprocesses round alike."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _torch_as_it_was() -> Iterator[None]:
    """An engine that a test leaves open has replaced torch's linear, under ZeRO 3."""
    before = torch.nn.functional.linear
    yield
    torch.nn.functional.linear = before


@pytest.fixture(scope="session")
def token_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def text_source(tmp_path_factory: pytest.TempPathFactory, token_cache: Path) -> DataSource:
    """About 20,000 bytes of verse with some structure to learn."""
    verses = [
        {"text": f"{n} green bottles hanging on wall {n * n % 89}, and if one should fall. " * 3}
        for n in range(100)
    ]
    path = tmp_path_factory.mktemp("corpus") / "verses.jsonl"
    path.write_text("".join(json.dumps(verse) + "\n" for verse in verses))
    source = DataSource(corpus=TextFiles(paths=[str(path)]), tokenizer=BytesTokenizer())
    open_store(source, token_cache)
    return source


@pytest.fixture(autouse=True)
def _private_cache(token_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WIDTHLAB_CACHE", str(token_cache))


@pytest.fixture
def make_spec(text_source: DataSource, token_cache: Path) -> MakeSpec:
    """A trial of ten updates that trains in a second: `make_spec(training__steps=3)`."""
    data = open_store(text_source, token_cache).data_spec

    def make(**changes: Any) -> TrialSpec:
        content: dict[str, Any] = {
            "model": {
                "architecture": "gpt2",
                "norm": "pre",
                "d_model": 16,
                "head_dim": 8,
                "ffn_widths": [32, 24],
                "context": 16,
                "vocab_size": 257,
            },
            "training": {"steps": 10, "batch_tokens": 64, "learning_rate": 1e-2},
            "data": data.model_dump(),
            "replicate": 0,
            "evaluation": {"every": 4, "tokens": 128},
            "spectra": {"every": 5, "tokens": 128, "sites": ["pre", "post"]},
            "source": text_source.model_dump(),
            "layout": {"checkpoint_every": 4},
        }
        return TrialSpec.model_validate(with_fields(content, changes))

    return make


# --- models of a thousand parameters -------------------------------------------------------


@pytest.fixture(scope="session")
def model_spec() -> Callable[..., ModelSpec]:
    """Two layers of width 32, four heads; `model_spec("llama", "mix", post_layers=1)`. nGPT has
    its own placement."""

    def make(architecture: str, norm: str = "pre", **changes: Any) -> ModelSpec:
        content = {
            "architecture": architecture,
            "norm": "ngpt" if architecture == "ngpt" else norm,
            "d_model": 32,
            "head_dim": 8,
            "ffn_widths": (96, 40),
            "context": 16,
            "vocab_size": 101,
        }
        return ModelSpec.model_validate(content | changes)

    return make


@pytest.fixture(scope="session")
def lively() -> Callable[..., Decoder]:
    """A built model whose every parameter, gains and biases too, was moved at random."""

    def make(spec: ModelSpec, spread: float = 0.2) -> Decoder:
        model = build(spec, 0)
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += spread * torch.randn(parameter.shape, generator=generator)
        return model

    return make


@pytest.fixture(scope="session")
def random_tokens() -> Callable[..., Tensor]:
    """Ids [sequences, length] of a model's vocabulary; as long as its context by default."""

    def make(spec: ModelSpec, sequences: int = 3, length: int | None = None) -> Tensor:
        generator = torch.Generator().manual_seed(2)
        shape = (sequences, length or spec.context)
        return torch.randint(spec.vocab_size, shape, generator=generator)

    return make


class Killed(Exception):  # noqa: N818 (an event, not a mistake)
    """What a `Diary` raises to cut a trial off."""


class Diary:
    """A log that remembers what it was told, and may do something after an update."""

    def __init__(self, after: dict[int, Callable[[], object]] | None = None) -> None:
        self.after = after or {}
        self.starts: list[tuple[str, int, int, int]] = []
        self.updates: list[int] = []
        self.losses: list[float] = []
        self.checkpoints: list[int] = []

    def started(self, trial_id: str, attempt: int, step: int, steps: int) -> None:
        self.starts.append((trial_id, attempt, step, steps))

    def progress(self, step: int, steps: int, loss: float, tokens_per_s: float) -> None:
        self.updates.append(step)
        self.losses.append(loss)
        if step in self.after:
            self.after[step]()

    def checkpointed(self, step: int) -> None:
        self.checkpoints.append(step)


@pytest.fixture
def diary() -> type[Diary]:
    return Diary


@pytest.fixture
def killed() -> type[Killed]:
    return Killed


@pytest.fixture
def dying_at() -> Callable[[int], Diary]:
    """A log that cuts the trial off right after an update, before it is measured."""

    def make(step: int) -> Diary:
        def die() -> None:
            raise Killed(f"after update {step}")

        return Diary({step: die})

    return make


@pytest.fixture
def stored() -> Callable[..., str]:
    """The key of a checkpoint's file, whichever attempt has put it there."""

    def find(trial: LocalStorage, step: int, name: str = "mp_rank_00_model_states.pt") -> str:
        folder = records.checkpoint_folder(step)
        (key,) = [key for key in trial.list(folder) if key.endswith(f"/{name}")]
        return key

    return find


Bits = tuple[dict[str, pa.Table], dict[str, Any]]


@pytest.fixture
def bits() -> Callable[[LocalStorage], Bits]:
    """All of a finished trial that must not depend on when and how often it was cut off: its
    records, and every number of its last checkpoint, weights, moments and counters."""

    def read(trial: LocalStorage) -> Bits:
        tables = {}
        for name in records.SCHEMAS:
            table = records.read_records(trial, name)
            clock = [column for column in CLOCK_COLUMNS if column in table.column_names]
            tables[name] = table.drop_columns(clock)
        step = records.committed_steps(trial.list())[-1]
        start_ranks("cpu")  # allows the few types that DeepSpeed's files hold beside tensors
        state = {}
        for path in sorted(trial.path(records.checkpoint_folder(step)).rglob("*.pt")):
            state |= _numbers(torch.load(path, weights_only=True), path.name)
        assert any("exp_avg_sq" in place for place in state)
        return tables, state

    return read


def _numbers(value: Any, place: str) -> dict[str, Any]:
    """Every number of a nested state, by where it is; but not the seconds that were spent."""
    if isinstance(value, torch.Tensor):
        return {place: value.tolist()}
    if isinstance(value, Mapping):
        items = ((key, item) for key, item in value.items() if key != "seconds")
    elif isinstance(value, list | tuple):
        items = enumerate(value)
    else:
        return {place: value} if isinstance(value, int | float) else {}
    return {k: v for key, item in items for k, v in _numbers(item, f"{place}/{key}").items()}


@pytest.fixture(scope="session", autouse=True)
def _leave_process_group() -> Iterator[None]:
    """Training joins a process group of one; the session leaves it as it found it."""
    yield
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
