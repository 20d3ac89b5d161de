"""Resolve a data source for a plan, using only local data: no request goes to the hub."""

from dataclasses import dataclass
from pathlib import Path

from trainers.data import sources
from trainers.data.contents import Contents
from trainers.data.corpus import Corpus, open_corpus
from trainers.data.estimate import estimated_contents
from trainers.data.hub import is_commit, local_folder
from trainers.data.sources import (
    BPETokenizer,
    BytesTokenizer,
    DataSource,
    DataSpec,
    HubDataset,
    PretrainedTokenizer,
)
from trainers.data.split_writer import as_found
from trainers.data.store import cache_root, find_store, stated_vocabulary, writable
from trainers.data.tokenizer import (
    ByteTokenizer,
    Tokenizer,
    kept_bpe,
    open_tokenizer,
    pretrained_at_hand,
)
from trialstore.errors import InputError


@dataclass(frozen=True)
class AtHand:
    """The tokens of a data source, as far as they are known without the hub.

    Attributes:
        data: fingerprints of corpus and tokenizer; None if either is on the hub and not on this
            machine.
        vocab_size: rows of the embedding.
        contents: documents, bytes and tokens of each split; None if `data` is None, or if the
            documents would have to be streamed from the hub.
    """

    data: DataSpec | None
    vocab_size: int  # rows of the embedding
    contents: Contents | None = None


def resolve(source: DataSource, cache: Path | None = None) -> AtHand:
    """Resolve a data source without asking the hub or building a token store.

    Token counts come from the cached token store if there is one. Otherwise they are estimated from
    a sample of the local documents.

    Args:
        source: the corpus and tokenizer sections of a sweep.
        cache: the cache folder; `cache_root()` by default.

    Raises:
        InputError: the vocabulary size is unknown on this machine, or a local corpus or tokenizer
            cannot be used.
    """
    root = cache or cache_root()
    stated = stated_vocabulary(source.tokenizer)
    corpus = _corpus_at_hand(source.corpus)
    if corpus is None and stated is not None:
        return AtHand(None, stated)
    with writable(root):
        tokenizer = _tokenizer_at_hand(source, corpus, root)
    if stated is not None:
        vocab_size = stated
    elif tokenizer is not None:
        vocab_size = tokenizer.vocab_size
    else:
        assert isinstance(source.tokenizer, PretrainedTokenizer)
        raise InputError(
            f"tokenizer pretrained: {source.tokenizer.path!r} is not on this machine, and a plan "
            "makes no request to the hub; set tokenizer.vocab_size (rows of the embedding), or "
            "give a folder that holds the tokenizer"
        )
    if corpus is None or tokenizer is None:
        return AtHand(None, vocab_size)
    data = DataSpec(corpus_fingerprint=corpus.fingerprint, tokenizer_hash=tokenizer.hash)
    kept = find_store(data, root)
    if kept is not None:
        return AtHand(data, vocab_size, as_found(kept.meta.contents, corpus, tokenizer))
    if _is_streamed(source.corpus):
        return AtHand(data, vocab_size)
    return AtHand(data, vocab_size, estimated_contents(corpus, tokenizer))


def _is_streamed(corpus: sources.Corpus) -> bool:
    """Return whether the documents come from the hub rather than from this machine."""
    return isinstance(corpus, HubDataset) and local_folder("corpus hub", corpus.dataset) is None


def _corpus_at_hand(config: sources.Corpus) -> Corpus | None:
    """Open the corpus, or return None if its fingerprint needs a request to the hub."""
    if isinstance(config, HubDataset) and _is_streamed(config) and not is_commit(config.revision):
        return None
    return open_corpus(config)


def _tokenizer_at_hand(source: DataSource, corpus: Corpus | None, root: Path) -> Tokenizer | None:
    """Open the tokenizer, or return None if it, or its training text, must come from the hub."""
    match source.tokenizer:
        case PretrainedTokenizer() as config:
            return pretrained_at_hand(config)
        case BPETokenizer(vocab_size=size) if corpus is not None and _is_streamed(source.corpus):
            return kept_bpe(size, corpus.fingerprint, root)
        case BytesTokenizer():
            return ByteTokenizer()
        case config:
            assert corpus is not None  # `resolve` has returned: a BPE states its vocabulary
            return open_tokenizer(config, corpus, root)
