"""Where tokens come from, and which tokens they are. Nothing here imports torch."""

from typing import Annotated, Literal

from pydantic import Discriminator, Field

from trainers.strict import MAX_VOCABULARY, Frozen


class PythonSource(Frozen):
    """The source of the running interpreter's standard library, without its tests."""

    kind: Literal["python-source"] = "python-source"


class TextFiles(Frozen):
    """Files, directories or globs of txt, md, py, jsonl, csv, parquet, or zips of them."""

    kind: Literal["text"] = "text"
    paths: list[str] = Field(min_length=1)
    column: str = "text"  # of jsonl objects, csv and Parquet tables


class HubDataset(Frozen):
    """A data set of the Hugging Face hub, or a local directory that `datasets` opens."""

    kind: Literal["hub"] = "hub"
    dataset: str
    name: str | None = None
    split: str = "train"
    revision: str | None = None
    column: str = "text"
    documents: int | None = Field(default=None, ge=2)  # how many to take, from the first


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
