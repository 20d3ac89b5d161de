"""Which tokens a source gives, as far as this machine can tell: a plan asks no hub."""

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
    """`data` is None where the corpus or the tokenizer is on the hub and not here; `contents` is
    None there too, and where the documents would have to be streamed."""

    data: DataSpec | None
    vocab_size: int  # rows of the embedding
    contents: Contents | None = None


def resolve(source: DataSource, cache: Path | None = None) -> AtHand:
    """Which tokens a source gives, as far as this machine can tell: asks no hub and builds no
    store. How many tokens there are is known of a store that is there already, and estimated
    from a sample of local documents otherwise.

    Raises InputError where not even the vocabulary is known, or a local source cannot be used.
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
            "asks no hub: state tokenizer.vocab_size, the rows of the embedding, or give a folder "
            "that holds the tokenizer"
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
    """Whether documents come from the hub, and not from this machine."""
    return isinstance(corpus, HubDataset) and local_folder("corpus hub", corpus.dataset) is None


def _corpus_at_hand(config: sources.Corpus) -> Corpus | None:
    """The corpus, where the hub need not be asked for its fingerprint."""
    if isinstance(config, HubDataset) and _is_streamed(config) and not is_commit(config.revision):
        return None
    return open_corpus(config)


def _tokenizer_at_hand(source: DataSource, corpus: Corpus | None, root: Path) -> Tokenizer | None:
    """The tokenizer, where neither it nor what it is trained on must come from the hub."""
    match source.tokenizer:
        case PretrainedTokenizer() as config:
            return pretrained_at_hand(config)
        case BPETokenizer(vocab_size=size) if corpus is not None and _is_streamed(source.corpus):
            return kept_bpe(size, corpus.fingerprint, root)
        case BytesTokenizer():
            return ByteTokenizer()
        case config:
            assert corpus is not None  # a BPE states its vocabulary
            return open_tokenizer(config, corpus, root)
