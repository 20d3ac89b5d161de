"""Where tokens come from, and which tokens they are. Nothing here imports torch."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field

from trainers.strict import MAX_VOCABULARY, Frozen


class PythonSource(Frozen):
    """The source of the running interpreter's standard library, without its tests."""

    kind: Literal["python-source"] = "python-source"


BadRow = Literal["refuse", "skip"]


class LaidOutSplit(Frozen):
    """The held-out split of files that are laid out as train, validation and test."""

    split: str = Field(min_length=1)


class HubSplit(Frozen):
    """The held-out split of a data set, or its first `documents`."""

    split: str = Field(min_length=1)
    documents: int | None = Field(default=None, ge=1)


def _as_hub_split(value: Any) -> Any:
    """The name of a split as a section of its own."""
    return {"split": value} if isinstance(value, str) else value


def _as_paths(value: Any) -> Any:
    """One path as a list. Raises ValueError for what names neither paths nor a split."""
    if isinstance(value, str):
        value = [value]
    if value is None or isinstance(value, LaidOutSplit):
        return value
    if isinstance(value, list) and value and all(isinstance(path, str) for path in value):
        return value
    if isinstance(value, dict) and value.keys() == {"split"} and isinstance(value["split"], str):
        return value
    raise ValueError(
        f"{value!r} should be a path, a list of paths, or a split of files that are laid out as "
        "train, validation and test: {split: validation}"
    )


class TextFiles(Frozen):
    """Files, directories or globs of txt, md, py, jsonl, csv, parquet, compressed or not, or
    zips of them.

    Held out is what `heldout` names, else the files laid out as the validation or test split,
    else about a tenth of the bytes.
    """

    kind: Literal["text"] = "text"
    paths: list[str] = Field(min_length=1)
    column: str = "text"  # of jsonl objects, csv and Parquet tables
    heldout: Annotated[list[str] | LaidOutSplit | None, BeforeValidator(_as_paths)] = None
    separator: str | None = Field(default=None, min_length=1)  # of documents in txt, md and py
    on_bad_row: BadRow = "refuse"


class HubDataset(Frozen):
    """A data set of the Hugging Face hub, or a local directory that `datasets` opens.

    Held out is the split that `heldout` names, else about a tenth.
    """

    kind: Literal["hub"] = "hub"
    dataset: str
    name: str | None = None
    split: str = "train"
    revision: str | None = None
    column: str = "text"
    documents: int | None = Field(default=None, ge=2)  # how many to take, from the first
    heldout: Annotated[HubSplit | None, BeforeValidator(_as_hub_split)] = None
    on_bad_row: BadRow = "refuse"


class BytesTokenizer(Frozen):
    """One token a byte, and one that separates documents: a vocabulary of 257."""

    kind: Literal["bytes"] = "bytes"


class BPETokenizer(Frozen):
    """Byte-level BPE, trained on the training split of the corpus."""

    kind: Literal["bpe"] = "bpe"
    vocab_size: int = Field(default=512, ge=258, le=MAX_VOCABULARY)


class PretrainedTokenizer(Frozen):
    """A `transformers` tokenizer: a directory or a hub id."""

    kind: Literal["pretrained"] = "pretrained"
    path: str
    revision: str | None = None
    # Rows of the embedding; None: as many as the tokenizer has ids. Published recipes may leave
    # out ids that never occur in text.
    vocab_size: int | None = Field(default=None, ge=2, le=MAX_VOCABULARY)


Corpus = Annotated[PythonSource | TextFiles | HubDataset, Discriminator("kind")]
Tokenizer = Annotated[BytesTokenizer | BPETokenizer | PretrainedTokenizer, Discriminator("kind")]


class DataSource(Frozen):
    """Where a trial's tokens come from; `DataSpec` says which tokens they must turn out to be."""

    corpus: Corpus = PythonSource()
    tokenizer: Tokenizer = BPETokenizer()


class DataSpec(Frozen):
    """Which tokens: fingerprints of the corpus with its held-out split, and of the tokenizer."""

    corpus_fingerprint: str = Field(min_length=8)
    tokenizer_hash: str = Field(min_length=8)
