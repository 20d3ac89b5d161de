"""Token stores: each split as memory-mapped Arrow shards, in a cache keyed by content.

    CACHE/tokens/<corpus fingerprint>-<tokenizer hash>-<format>/
        train/00000.arrow ...          token ids, uint16 or uint32
        heldout/00000.arrow ...        ids, and the bytes of text behind each
        unigram.arrow                  occurrences of every id in the training split
        tokenizer.json ...             the tokenizer
        meta.json                      contents of the corpus, shards and hashes; written last

Each document is followed by the separator. A store is built in a temporary folder and renamed into
place, so no reader sees a partial one. Processes on one machine wait for the one that builds. The
name identifies the content, so a store is never out of date. Opening a store compares the ids with
their hash, except in files already verified and unchanged since.
"""

import contextlib
import errno
import fcntl
import hashlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import TypeAdapter

from trainers.data import sources
from trainers.data.contents import SPLITS, Contents, ordered
from trainers.data.corpus import Corpus, Split, open_corpus
from trainers.data.paths import user_path
from trainers.data.shards import ShardedTokens, sync
from trainers.data.sources import BytesTokenizer, DataSource, DataSpec
from trainers.data.split_writer import (
    SplitMeta,
    SplitWriter,
    as_found,
    encoding_of,
    refuse_lost,
    with_remarks,
)
from trainers.data.tokenizer import Tokenizer, open_tokenizer
from trainers.data.verified import verified_once
from trialstore.errors import InputError
from trialstore.storage import NO_ROOM

log = logging.getLogger(__name__)

META = "meta.json"
UNIGRAM = "unigram.arrow"
#: Errors of a cache folder that need not name a file. EFBIG (a limit on the size of files) is not
#: in NO_ROOM: another folder may take a large shard, but freeing space would not help.
CACHE_FULL = (*NO_ROOM, errno.EFBIG)
FORMAT = 4

#: Smallest and largest held-out share of all tokens that a rule may produce. A split that the user
#: gives may have any size.
HELD_OUT_TOKENS = (0.02, 0.3)


@dataclass(frozen=True)
class Meta:
    """The content of meta.json: the contents of the corpus and the files of the store."""

    format: int
    corpus_fingerprint: str
    tokenizer_hash: str
    vocab_size: int  # ids of the tokenizer
    highest_id: int  # in either split
    separator: int
    tokenizer_sha256: str  # of tokenizer.json
    unigram_sha256: str  # of the counts in unigram.arrow
    splits: dict[Split, SplitMeta]
    contents: Contents


@dataclass(frozen=True)
class TokenStore:
    """The tokens of a corpus, memory-mapped read-only; indexing copies only what it returns."""

    folder: Path
    meta: Meta
    train: ShardedTokens
    heldout: ShardedTokens
    unigram: NDArray[np.int64]  # [ids of the tokenizer] occurrences in the training split
    vocab_size: int  # rows of the embedding

    @property
    def data_spec(self) -> DataSpec:
        """The fingerprints that identify these tokens."""
        return DataSpec(
            corpus_fingerprint=self.meta.corpus_fingerprint,
            tokenizer_hash=self.meta.tokenizer_hash,
        )

    @property
    def separator(self) -> int:
        """The id after every document."""
        return self.meta.separator

    @property
    def lossless(self) -> bool:
        """Whether every document decodes back to itself; bits per byte are valid only then."""
        return self.meta.contents.encoding is not None and self.meta.contents.encoding.lossless

    @property
    def digest(self) -> str:
        """Sixteen hexadecimal digits, equal for equal tokens of both splits."""
        splits = self.train.digest + self.heldout.digest
        return hashlib.sha256(splits.encode()).hexdigest()[:16]

    @property
    def tokenizer_path(self) -> Path:
        """The path of tokenizer.json; its folder opens with `transformers.AutoTokenizer`."""
        return self.folder / "tokenizer.json"


def cache_root() -> Path:
    """Return the absolute cache folder.

    It is $WIDTHLAB_CACHE, or else `widthlab` below $XDG_CACHE_HOME or ~/.cache. A relative path is
    relative to the working directory.

    Raises:
        InputError: the variable holds a path that cannot be looked up.
    """
    if chosen := os.environ.get("WIDTHLAB_CACHE"):
        return user_path("WIDTHLAB_CACHE", chosen).absolute()
    if base := os.environ.get("XDG_CACHE_HOME"):
        return user_path("XDG_CACHE_HOME", base).absolute() / "widthlab"
    return Path.home() / ".cache" / "widthlab"


def open_store(
    source: DataSource, cache: Path | None = None, expected: DataSpec | None = None
) -> TokenStore:
    """Open the tokens of a source; build the store if the cache does not have it.

    Args:
        source: the corpus and tokenizer.
        cache: the cache folder; `cache_root()` by default.
        expected: the tokens that the trial was planned with. A cached store of these is opened
            without reading the corpus again; other tokens are refused.

    Returns:
        The token ids of both splits, mapped from disk, with their fingerprint and contents.

    Raises:
        InputError: corpus, tokenizer or cache folder cannot be used, or the tokens are not the
            expected ones.
    """
    root = cache or cache_root()
    if expected is not None:
        kept = find_store(expected, root)
        if kept is not None:
            return _with_stated(kept, source.tokenizer)
    corpus = open_corpus(source.corpus)
    with writable(root):
        tokenizer = open_tokenizer(source.tokenizer, corpus, root)
        data = DataSpec(corpus_fingerprint=corpus.fingerprint, tokenizer_hash=tokenizer.hash)
        if expected is not None:
            _check(data, expected)
        folder = _folder(root, data)
        store = _open_kept(folder) or _build_once(folder, corpus, tokenizer)
        contents = as_found(store.meta.contents, corpus, tokenizer)
        store = replace(store, meta=replace(store.meta, contents=contents))
        return _with_stated(store, source.tokenizer)


def find_store(data: DataSpec, cache: Path | None = None) -> TokenStore | None:
    """Return the cached store of exactly these tokens, or None."""
    return _open_kept(_folder(cache or cache_root(), data))


def expect(store: TokenStore, data: DataSpec) -> None:
    """Refuse a store that does not hold the tokens that a trial was planned with.

    Raises:
        InputError: the fingerprint of corpus or tokenizer differs.
    """
    _check(store.data_spec, data)


def _check(found: DataSpec, expected: DataSpec) -> None:
    if found.corpus_fingerprint != expected.corpus_fingerprint:
        raise InputError(
            f"the corpus has changed: its fingerprint is {found.corpus_fingerprint}, but the "
            f"trial was planned with {expected.corpus_fingerprint}. Its files differ or, for "
            "python-source, the version or build of Python does. Restore the planned corpus, or "
            "plan a new sweep under another name"
        )
    if found.tokenizer_hash != expected.tokenizer_hash:
        raise InputError(
            f"the tokenizer has changed: its hash is {found.tokenizer_hash}, but the trial was "
            f"planned with {expected.tokenizer_hash}. The revision of a pretrained tokenizer or "
            "the version of the tokenizers library may differ. Restore the planned one, or plan a "
            "new sweep under another name"
        )


# --- opening -------------------------------------------------------------------------------


def _folder(root: Path, data: DataSpec) -> Path:
    # The format in the name lets several versions of widthlab share a cache.
    name = f"{data.corpus_fingerprint}-{data.tokenizer_hash}-{FORMAT}"
    return root / "tokens" / name


def _open_kept(folder: Path) -> TokenStore | None:
    """Return the store in a folder, or None if it is missing or broken."""
    try:
        meta = _read_meta(folder)
        _check_tokenizer(folder, meta)
        train, heldout = (_shards(folder, meta.splits[split]) for split in SPLITS)
        unigram = _read_unigram(folder, meta)
    except FileNotFoundError:
        return None
    except (ValueError, LookupError, TypeError, OSError, RecursionError,
            pa.ArrowException) as error:  # fmt: skip
        log.warning("%s: the token store is broken and is built again (%s)", folder, error)
        return None
    return TokenStore(folder, meta, train, heldout, unigram, meta.vocab_size)


def stated_vocabulary(tokenizer: sources.Tokenizer) -> int | None:
    """Return the vocabulary size that a tokenizer's section states, or None."""
    return None if isinstance(tokenizer, BytesTokenizer) else tokenizer.vocab_size


def _with_stated(store: TokenStore, tokenizer: sources.Tokenizer) -> TokenStore:
    """Return the store with the number of embedding rows that the sweep states.

    Raises InputError if an id of the data would have no row.
    """
    stated = stated_vocabulary(tokenizer)
    if stated is None:
        return store
    if store.meta.highest_id >= stated:
        raise InputError(
            f"tokenizer.vocab_size {stated} is too small: the data hold the id "
            f"{store.meta.highest_id}; set at least {store.meta.highest_id + 1}, or leave it out "
            f"for the tokenizer's {store.meta.vocab_size}"
        )
    return replace(store, vocab_size=stated)


def _read_meta(folder: Path) -> Meta:
    text = (folder / META).read_text(encoding="utf-8")
    found = json.loads(text)["format"]
    if found != FORMAT:
        raise ValueError(f"format {found!r}, not {FORMAT}")
    return TypeAdapter(Meta).validate_json(text, strict=True)


def _check_tokenizer(folder: Path, meta: Meta) -> None:
    data = (folder / "tokenizer.json").read_bytes()
    if hashlib.sha256(data).hexdigest() != meta.tokenizer_sha256:
        raise ValueError("tokenizer.json does not match its hash")


def _shards(folder: Path, meta: SplitMeta) -> ShardedTokens:
    tokens = ShardedTokens(folder, meta.shards)
    if len(tokens) != meta.tokens:
        raise ValueError(f"its shards have {len(tokens)} tokens, not {meta.tokens}")
    # Every process of every trial opens the store, which may have hundreds of gigabytes, so a file
    # is hashed once, and again only after a change.
    root = folder.parent.parent
    tokens.check(lambda path, sha256, digest: verified_once(path, sha256, root, digest))
    return tokens


def _read_unigram(folder: Path, meta: Meta) -> NDArray[np.int64]:
    batch = pa.ipc.open_file((folder / UNIGRAM).read_bytes()).get_batch(0)
    counts: NDArray[np.int64] = batch.column(0).to_numpy()
    if len(counts) != meta.vocab_size or _sha256(counts) != meta.unigram_sha256:
        raise ValueError(f"{UNIGRAM} does not match its hash")
    return counts


def _write_unigram(folder: Path, counts: NDArray[np.int64]) -> None:
    batch = pa.record_batch([pa.array(counts)], ["count"])
    with (folder / UNIGRAM).open("wb") as stream:
        with pa.ipc.new_file(stream, batch.schema) as writer:
            writer.write_batch(batch)
        sync(stream)


def _sha256(counts: NDArray[np.int64]) -> str:
    return hashlib.sha256(counts.astype("<i8").tobytes()).hexdigest()


# --- building ------------------------------------------------------------------------------


def _build_once(folder: Path, corpus: Corpus, tokenizer: Tokenizer) -> TokenStore:
    """Build the store, unless another process has built it while this one waited for the lock."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _locked(folder.with_name(f"{folder.name}.lock")):
        kept = _open_kept(folder)
        if kept is not None:
            return kept
        # The lock makes this process the only builder on this machine. On a shared file system
        # with local locks, another machine may be building too.
        prefix = f".{folder.name}.{os.uname().nodename}."
        for leftover in folder.parent.glob(f"{prefix}*"):
            shutil.rmtree(leftover)  # from a builder that was killed
        temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=prefix))
        try:
            _build(temporary, corpus, tokenizer)
            temporary.chmod(0o755)  # mkdtemp makes a private folder, but a cache may be shared
            _place(temporary, folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    built = _open_kept(folder)
    if built is None:
        raise OSError(f"{folder}: the token store is broken right after it was written")
    return built


def _place(built: Path, folder: Path) -> None:
    """Rename a store into place, unless a complete one is already there."""
    try:
        os.rename(built, folder)
    except OSError:
        if _open_kept(folder) is not None:
            return
        os.rename(folder, built / "replaced")  # broken; processes that map it keep their files
        os.rename(built, folder)
        shutil.rmtree(folder / "replaced")


def _build(folder: Path, corpus: Corpus, tokenizer: Tokenizer) -> None:
    log.info("building the token store of corpus %s", corpus.fingerprint)
    with contextlib.ExitStack() as stack:
        writers = {
            split: stack.enter_context(contextlib.closing(SplitWriter(folder, split, tokenizer)))
            for split in SPLITS
        }
        for split, document in corpus.assigned():
            writers[split].add(document)
        for split, writer in writers.items():
            if not writer.documents:
                raise InputError(
                    f"the {split} split of corpus {corpus.fingerprint} holds no documents; give "
                    "more documents"
                )
        splits = {split: writer.finish() for split, writer in writers.items()}
    contents = Contents(
        split_rule=corpus.split_rule,
        sources=ordered(part for w in writers.values() for part in w.sources.values()),
        left_out=corpus.left_out,
        remarks=corpus.remarks,
        encoding=encoding_of((writer.lost for writer in writers.values()), tokenizer),
    )
    _check_shares(splits, corpus)
    contents = with_remarks(contents, tokenizer)
    refuse_lost({split: writer.lost for split, writer in writers.items()})
    tokenizer_path = tokenizer.save(folder)
    _write_unigram(folder, writers["train"].counts)
    meta = Meta(
        format=FORMAT,
        corpus_fingerprint=corpus.fingerprint,
        tokenizer_hash=tokenizer.hash,
        vocab_size=tokenizer.vocab_size,
        highest_id=max(int(writer.counts.nonzero()[0][-1]) for writer in writers.values()),
        separator=tokenizer.separator,
        tokenizer_sha256=hashlib.sha256(tokenizer_path.read_bytes()).hexdigest(),
        unigram_sha256=_sha256(writers["train"].counts),
        splits=splits,
        contents=contents,
    )
    with (folder / META).open("w", encoding="utf-8") as stream:
        json.dump(asdict(meta), stream, indent=1)
        sync(stream)


def _check_shares(splits: dict[Split, SplitMeta], corpus: Corpus) -> None:
    """Refuse a split rule that held out far from a tenth of the tokens.

    The rule for streams sees documents one at a time and cannot balance their sizes.
    """
    share = splits["heldout"].tokens / sum(meta.tokens for meta in splits.values())
    low, high = HELD_OUT_TOKENS
    if corpus.split_is_given or low <= share <= high:
        return
    raise InputError(
        f"corpus {corpus.fingerprint}: {share:.1%} of the tokens would be held out "
        f"({splits['heldout'].tokens:,} held out, {splits['train'].tokens:,} trained on), outside "
        f"the accepted {low:.0%} to {high:.0%}. Name a held-out part in corpus.heldout, or give "
        "more and shorter documents"
    )


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold the lock of a file; the system frees it if the holder dies."""
    with path.open("a") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def writable(root: Path) -> Iterator[None]:
    """Turn the OSError of a cache folder that cannot be written into an InputError naming it."""
    try:
        yield
    except OSError as error:
        # An error without a file name comes from the network that streams a corpus.
        if error.filename is None and error.errno not in CACHE_FULL:
            raise
        raise InputError(
            f"the cache folder {root} cannot be used: {error}; set WIDTHLAB_CACHE to a writable "
            "folder"
        ) from error
