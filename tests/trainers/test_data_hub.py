"""Data sets through the `datasets` library, on local folders; the hub itself only when away."""

import errno
import gzip
import itertools
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from huggingface_hub.errors import HfHubHTTPError
from messages import mentions

from trainers.data.corpus import open_corpus
from trainers.data.documents import Split
from trainers.data.hub import gave_no_answer, pin, resolve_revision
from trainers.data.hub_corpus import HubCorpus
from trainers.data.pretrained_tokenizer import open_published
from trainers.data.sources import (
    BytesTokenizer,
    DataSource,
    HubDataset,
    PretrainedTokenizer,
    PythonSource,
)
from trialstore.errors import InputError, NoAnswerError, is_final

COMMIT = "0123456789abcdef0123456789abcdef01234567"
TEXTS = [f"document {number}" for number in range(600)]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "datasets-cache")


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def folder(root: Path, kind: str = "jsonl", texts: list[str] = TEXTS) -> Path:
    root.mkdir()
    if kind == "jsonl":
        rows = "".join(json.dumps({"text": text, "url": "u"}) + "\n" for text in texts)
        (root / "train.jsonl").write_text(rows)
    else:
        pq.write_table(pa.table({"text": texts}), root / "train.parquet")
    return root


def opened(path: Path, **options: object) -> HubCorpus:
    corpus = open_corpus(HubDataset.model_validate({"dataset": str(path), **options}))
    assert isinstance(corpus, HubCorpus)
    return corpus


def texts(corpus: HubCorpus, split: Split) -> list[str]:
    return [document.text for document in corpus.documents(split)]


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_a_local_folder_streams_in_order(tmp_path: Path, kind: str) -> None:
    corpus = opened(folder(tmp_path / "data", kind))
    assert [document.text for _, document in corpus.assigned()] == TEXTS
    assert corpus.total_bytes == sum(map(len, TEXTS))
    assert {document.source for _, document in corpus.assigned()} == {"data:train"}


def test_the_splits_of_a_folder_are_whole_documents_and_a_tenth_of_the_bytes(
    tmp_path: Path,
) -> None:
    corpus = opened(folder(tmp_path / "data"))
    train, heldout = texts(corpus, "train"), texts(corpus, "heldout")
    assert sorted(train + heldout) == sorted(TEXTS)
    tenth = sum(map(len, TEXTS)) / 10
    assert abs(sum(map(len, heldout)) - tenth) <= max(map(len, TEXTS)) / 2


def test_splits_of_its_own_that_are_not_read_are_said(tmp_path: Path) -> None:
    path = folder(tmp_path / "data")
    assert opened(path).remarks == ()
    shutil.copy(path / "train.jsonl", path / "validation.jsonl")
    (said,) = opened(path).remarks

    assert mentions(said, "'validation' ... heldout: validation")
    remarks = " ".join(opened(path, heldout="validation").remarks)
    assert "heldout: validation" not in remarks


def test_the_split_that_the_user_names_is_held_out(tmp_path: Path) -> None:
    path = folder(tmp_path / "data")
    rows = [json.dumps({"text": text}) + "\n" for text in ("document  7", "another", "a third")]
    (path / "validation.jsonl").write_text("".join(rows))
    corpus = opened(path, heldout={"split": "validation"})
    assert texts(corpus, "train") == TEXTS
    assert texts(corpus, "heldout") == ["document  7", "another", "a third"]

    assert "'validation'" in corpus.split_rule

    (remark,) = corpus.remarks
    assert mentions(remark, "1 documents ... 3 held-out")
    assert opened(path, heldout="validation").fingerprint == corpus.fingerprint
    two = opened(path, heldout={"split": "validation", "documents": 2})
    assert texts(two, "heldout") == ["document  7", "another"]
    assert len({corpus.fingerprint, two.fingerprint, opened(path).fingerprint}) == 3
    with pytest.raises(InputError, match="heldout: split 'train'"):
        opened(path, heldout={"split": "train"})


def test_bad_rows_are_refused_or_skipped_and_counted(tmp_path: Path) -> None:
    path = folder(tmp_path / "data")
    with (path / "train.jsonl").open("a") as stream:
        stream.write('{"text": null, "url": "u"}\n' * 3 + '{"text": " ", "url": "u"}\n')
    with pytest.raises(InputError, match=r"document 600: .*NoneType.*on_bad_row: skip"):
        opened(path)
    corpus = opened(path, on_bad_row="skip")
    assert [document.text for _, document in corpus.assigned()] == TEXTS
    assert [(row.reason, row.count, row.unit) for row in corpus.left_out] == [
        ("empty document", 1, "documents"),
        ("null row", 3, "rows"),
    ]


def test_a_folder_that_changes_between_two_passes_is_noticed(tmp_path: Path) -> None:
    path = folder(tmp_path / "data")
    corpus = opened(path)
    with (path / "train.jsonl").open("a") as stream:
        stream.write('{"text": "late", "url": "u"}\n')
    with pytest.raises(InputError, match=f"folder {path}: "):
        texts(corpus, "train")


def test_only_as_many_documents_are_taken_as_asked(tmp_path: Path) -> None:
    path = folder(tmp_path / "data")
    few = opened(path, documents=20)
    assert [document.text for _, document in few.assigned()] == TEXTS[:20]
    assert texts(few, "heldout")
    assert few.fingerprint != opened(path).fingerprint


def test_a_stream_is_not_read_further_than_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    endless = ({"text": f"endless {number}"} for number in itertools.count())
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: endless)
    corpus = open_corpus(HubDataset(dataset="owner/name", revision=COMMIT))
    assert corpus.total_bytes is None
    assert len(list(itertools.islice(corpus.documents("train"), 1000))) == 1000
    assert "about 10% of their number" in corpus.split_rule


def test_the_fingerprint_is_of_the_contents_of_a_folder(tmp_path: Path) -> None:
    path = folder(tmp_path / "data")
    before = opened(path).fingerprint
    moved = Path(shutil.copytree(path, tmp_path / "elsewhere"))
    assert opened(moved).fingerprint == before
    (moved / "train.jsonl").write_text('{"text": "a"}\n{"text": "b"}\n')
    assert opened(moved).fingerprint != before


def test_the_fingerprint_of_a_pinned_data_set_needs_no_network() -> None:
    pinned = HubDataset(dataset="owner/name", revision=COMMIT)
    corpus = open_corpus(pinned)
    other = open_corpus(pinned.model_copy(update={"column": "content"}))
    assert len(bytes.fromhex(corpus.fingerprint)) == 8
    assert corpus.fingerprint != other.fingerprint


def test_documents_that_are_all_alike_cannot_be_split(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"data set .*one distinct"):
        texts(opened(folder(tmp_path / "data", texts=["same"] * 5)), "train")


def test_a_wrong_column_split_or_name_is_named(tmp_path: Path) -> None:
    path = folder(tmp_path / "data")
    with pytest.raises(InputError, match=r"document 0: .*'body'.* text, url"):
        texts(opened(path, column="body"), "train")
    with pytest.raises(InputError, match=r"split 'test'.*: Bad split"):
        texts(opened(path, split="test"), "train")
    with pytest.raises(InputError, match=r"name 'other'.*: BuilderConfig"):
        texts(opened(path, name="other"), "train")


def test_a_folder_of_no_data_and_a_broken_file_are_named(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="empty"):
        texts(opened(tmp_path / "empty"), "train")
    path = folder(tmp_path / "data")
    (path / "train.jsonl").write_text('{"text": "fine"}\n{"text": cut')
    with pytest.raises(InputError, match=r"data set '.*/data'"):
        texts(opened(path), "train")


def test_a_compressed_file_that_is_cut_short_is_named(tmp_path: Path) -> None:
    rows = "".join(json.dumps({"text": text}) + "\n" for text in TEXTS)
    path = tmp_path / "data"
    path.mkdir()
    (path / "train.jsonl.gz").write_bytes(gzip.compress(rows.encode())[:-500])
    with pytest.raises(InputError, match=r"/data'.*Compressed file ended .*corpus kind text"):
        opened(path)


@pytest.mark.parametrize("name", ["/no/such/folder", "./nowhere", "a/b/c"])
def test_a_folder_that_is_not_there_is_named(name: str) -> None:
    with pytest.raises(InputError, match=f"corpus hub: .*'{name}'.*OWNER/NAME"):
        open_corpus(HubDataset(dataset=name))


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("kind", ["dataset", "model"])
def test_a_hub_that_does_not_answer_is_an_input_error(kind: str) -> None:
    with pytest.raises(InputError, match=f"{kind} 'owner/name' at revision 'main'.*OfflineMode"):
        resolve_revision(kind, "owner/name", "main")


@pytest.mark.usefixtures("offline")
def test_requests_that_the_user_forbade_get_no_later_answer() -> None:
    with pytest.raises(InputError) as raised:
        resolve_revision("dataset", "owner/name", "main")
    assert is_final(raised.value)


def answered(status: int) -> HfHubHTTPError:
    httpx = httpx_of_the_client()
    request = httpx.Request("GET", "https://hub.invalid")
    return HfHubHTTPError("no", response=httpx.Response(status, request=request))


def httpx_of_the_client() -> Any:
    """The HTTP library under the hub's client, by whatever name it has."""
    return sys.modules[HfHubHTTPError.__bases__[0].__module__.partition(".")[0]]


UNREACHABLE = {
    "no connection": lambda: httpx_of_the_client().ConnectError("no route"),
    "a timeout": lambda: httpx_of_the_client().ReadTimeout("too slow"),
    "too many requests": lambda: answered(429),
    "an error of the server": lambda: answered(503),
    "a lost connection": lambda: ConnectionResetError(errno.ECONNRESET, "reset"),
}
ANSWERED = {
    "no such name": lambda: answered(404),
    "no token": lambda: answered(401),
    "no such file": lambda: FileNotFoundError("no data file"),
    "no such split": lambda: ValueError("unknown split"),
}


@pytest.mark.parametrize(
    ("error", "final"),
    [(UNREACHABLE[name], False) for name in UNREACHABLE]
    + [(ANSWERED[name], True) for name in ANSWERED],
    ids=[*UNREACHABLE, *ANSWERED],
)
@pytest.mark.parametrize("when", ["revision", "opening", "reading", "tokenizer"])
def test_a_trial_is_tried_again_only_if_no_server_answered(
    when: str, error: Callable[[], Exception], final: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object, **__: object) -> Any:
        raise error()

    def breaks_off(*_: object, **__: object) -> Iterator[dict[str, str]]:
        yield {"text": "one"}
        raise error()

    hub = HubDataset(dataset="owner/name", revision=COMMIT)
    match when:
        case "revision":
            monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", fails)
            action = partial(resolve_revision, "dataset", "owner/name", "main")
        case "opening":
            monkeypatch.setattr("datasets.load_dataset", fails)
            action = partial(texts, HubCorpus(hub), "train")
        case "reading":
            monkeypatch.setattr("datasets.load_dataset", breaks_off)
            action = partial(texts, HubCorpus(hub), "train")
        case "tokenizer":
            monkeypatch.setattr("huggingface_hub.snapshot_download", fails)
            action = partial(open_published, PretrainedTokenizer(path="owner/name"))
    with pytest.raises(InputError, match="owner/name") as raised:
        action()
    assert is_final(raised.value) == final


def test_a_wrapped_error_is_judged_by_its_cause() -> None:
    error = OSError("cannot load the tokenizer")
    error.__cause__ = answered(502)
    assert gave_no_answer(error)


def test_a_folder_on_a_disk_that_does_not_answer_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object, **__: object) -> Any:
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    path = folder(tmp_path / "data")
    monkeypatch.setattr("datasets.load_dataset", fails)
    with pytest.raises(NoAnswerError, match="data"):
        opened(path)


# --- pinning -------------------------------------------------------------------------------


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hub on which every branch of every repository is at the same commit."""

    def info(_: object, name: str, **__: object) -> SimpleNamespace:
        return SimpleNamespace(id=name, sha=COMMIT)

    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", info)
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", info)


@pytest.mark.usefixtures("hub")
def test_pinning_resolves_hub_names_to_commits() -> None:
    source = DataSource(
        corpus=HubDataset(dataset="owner/name"),
        tokenizer=PretrainedTokenizer(path="owner/model", revision="main"),
    )
    pinned = pin(source)
    assert isinstance(pinned.corpus, HubDataset)
    assert isinstance(pinned.tokenizer, PretrainedTokenizer)
    assert pinned.corpus.revision == pinned.tokenizer.revision == COMMIT
    assert pin(pinned) == pinned
    assert open_corpus(source.corpus).fingerprint == open_corpus(pinned.corpus).fingerprint


def test_pinning_leaves_local_sources_alone(tmp_path: Path) -> None:
    local = DataSource(corpus=HubDataset(dataset=str(tmp_path)), tokenizer=BytesTokenizer())
    assert pin(local) == local
    assert pin(DataSource(corpus=PythonSource())) == DataSource(corpus=PythonSource())
