"""Configuration of corpus and tokenizer, and the fingerprints they resolve to. Does not import
torch.
"""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field

from trainers.strict import MAX_VOCABULARY, Frozen


class PythonSource(Frozen):
    """The source of the running interpreter's standard library, without its tests."""

    kind: Literal["python-source"] = "python-source"


BadRow = Literal["refuse", "skip"]


class LaidOutSplit(Frozen):
    """The held-out part of files that are laid out as train, validation and test."""

    split: str = Field(min_length=1)


class HubSplit(Frozen):
    """The held-out split of a data set, or its first `documents` documents."""

    split: str = Field(min_length=1)
    documents: int | None = Field(default=None, ge=1)


def _as_hub_split(value: Any) -> Any:
    """Turn the name of a split into a section."""
    return {"split": value} if isinstance(value, str) else value


def _as_paths(value: Any) -> Any:
    """Turn one path into a list of one; refuse values that are neither paths nor a split."""
    if isinstance(value, str):
        value = [value]
    if value is None or isinstance(value, LaidOutSplit):
        return value
    if isinstance(value, list) and value and all(isinstance(path, str) for path in value):
        return value
    if isinstance(value, dict) and value.keys() == {"split"} and isinstance(value["split"], str):
        return value
    raise ValueError(
        f"{value!r} should be a path, a list of paths, or, for files laid out as train, "
        "validation and test, the split to hold out: {split: validation}"
    )


class TextFiles(Frozen):
    """Local files: txt, md, py, jsonl, csv or parquet, compressed or not, or zips of them.

    `heldout` names the held-out files. By default they are the files laid out as the validation or
    test part, or else about a tenth of the bytes.

    Attributes:
        paths: files, folders or globs.
        column: the text column of jsonl objects, csv and Parquet tables.
        heldout: paths of held-out files, or a part of the layout.
        separator: the mark between documents in txt, md and py files.
        on_bad_row: whether a row without text is an error or is left out and counted.
    """

    kind: Literal["text"] = "text"
    paths: list[str] = Field(min_length=1)
    column: str = "text"
    heldout: Annotated[list[str] | LaidOutSplit | None, BeforeValidator(_as_paths)] = None
    separator: str | None = Field(default=None, min_length=1)
    on_bad_row: BadRow = "refuse"


class HubDataset(Frozen):
    """A data set on the Hugging Face hub, or a local folder that `datasets` opens.

    The held-out split is the one that `heldout` names, or else about a tenth of the documents.

    Attributes:
        dataset: OWNER/NAME, or a folder.
        name: the configuration of the data set.
        split: the split to train on.
        revision: branch, tag or commit; None for the default branch.
        column: the column that holds the text.
        documents: how many documents to take, from the first; None for all.
        heldout: a split to hold out.
        on_bad_row: whether a row without text is an error or is left out and counted.
    """

    kind: Literal["hub"] = "hub"
    dataset: str
    name: str | None = None
    split: str = "train"
    revision: str | None = None
    column: str = "text"
    documents: int | None = Field(default=None, ge=2)
    heldout: Annotated[HubSplit | None, BeforeValidator(_as_hub_split)] = None
    on_bad_row: BadRow = "refuse"


class BytesTokenizer(Frozen):
    """One token per byte, and one as the separator between documents: a vocabulary of 257."""

    kind: Literal["bytes"] = "bytes"


class BPETokenizer(Frozen):
    """Byte-level BPE, trained on the training split of the corpus."""

    kind: Literal["bpe"] = "bpe"
    vocab_size: int = Field(default=512, ge=258, le=MAX_VOCABULARY)


class PretrainedTokenizer(Frozen):
    """A published tokenizer: a folder or a hub id.

    Attributes:
        path: the folder, or OWNER/NAME.
        revision: branch, tag or commit; None for the default branch.
        vocab_size: rows of the embedding; None for as many as the tokenizer has ids. Published
            recipes may omit ids that never occur in text.
    """

    kind: Literal["pretrained"] = "pretrained"
    path: str
    revision: str | None = None
    vocab_size: int | None = Field(default=None, ge=2, le=MAX_VOCABULARY)


Corpus = Annotated[PythonSource | TextFiles | HubDataset, Discriminator("kind")]
Tokenizer = Annotated[BytesTokenizer | BPETokenizer | PretrainedTokenizer, Discriminator("kind")]


class DataSource(Frozen):
    """Where the tokens of a trial come from; `DataSpec` identifies the tokens themselves."""

    corpus: Corpus = PythonSource()
    tokenizer: Tokenizer = BPETokenizer()


class DataSpec(Frozen):
    """The identity of tokens: fingerprints of the corpus with its split, and of the tokenizer."""

    corpus_fingerprint: str = Field(min_length=8)
    tokenizer_hash: str = Field(min_length=8)
