"""Compressed files give what they hold, however many members they have, or are refused."""

import bz2
import gzip
import json
import lzma
import zipfile
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from trainers.data.corpus import Corpus, open_corpus
from trainers.data.sources import TextFiles
from trialstore.errors import InputError

TEXTS = [f"document {number}: " + "word " * number for number in range(40)]


def zstd(content: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(content)
    return sink.getvalue().to_pybytes()


def xz(content: bytes) -> bytes:
    return lzma.compress(content)


PACK: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": xz,
    ".zst": zstd,
}
JSONL = "".join(json.dumps({"text": text}) + "\n" for text in TEXTS).encode()


def opened(path: Path) -> Corpus:
    return open_corpus(TextFiles(paths=[str(path)]))


def texts(corpus: Corpus) -> list[str]:
    return [document.text for _, document in corpus.assigned()]


def content(kind: str) -> bytes:
    """The forty texts as a file of a kind; the prose is one document."""
    match kind:
        case ".jsonl" | ".ndjson":
            return JSONL
        case ".csv":
            return ("id,text\n" + "".join(f'1,"{text}"\n' for text in TEXTS)).encode()
        case ".parquet":
            sink = pa.BufferOutputStream()
            pq.write_table(pa.table({"text": TEXTS}), sink)
            return sink.getvalue().to_pybytes()
    return "\n\n".join(TEXTS).encode()


@pytest.mark.parametrize("compression", PACK)
@pytest.mark.parametrize("kind", [".txt", ".md", ".py", ".jsonl", ".ndjson", ".csv", ".parquet"])
def test_a_compressed_file_is_the_file(tmp_path: Path, kind: str, compression: str) -> None:
    plain = tmp_path / "plain" / f"a{kind}"
    packed = tmp_path / "packed" / f"a{kind}{compression}"
    for path in (plain, packed):
        path.parent.mkdir()
    plain.write_bytes(content(kind))
    packed.write_bytes(PACK[compression](content(kind)))
    found = opened(packed.parent)
    assert "".join(texts(found)) == "".join(TEXTS if kind in TABLES else ["\n\n".join(TEXTS)])
    assert list(found.assigned()) == [
        (split, type(document)(document.name, document.text, f"a{kind}{compression}"))
        for split, document in opened(plain.parent).assigned()
    ]
    assert found.fingerprint == opened(plain.parent).fingerprint
    assert not found.left_out


TABLES = (".jsonl", ".ndjson", ".csv", ".parquet")


@pytest.mark.parametrize("compression", PACK)
@pytest.mark.parametrize("kind", [".jsonl", ".parquet"])
def test_a_zip_may_hold_compressed_files(tmp_path: Path, kind: str, compression: str) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr(f"a{kind}{compression}", PACK[compression](content(kind)))
    assert texts(opened(tmp_path / "a.zip")) == TEXTS


@pytest.mark.parametrize("compression", PACK)
def test_members_follow_each_other(tmp_path: Path, compression: str) -> None:
    pack = PACK[compression]
    half = JSONL.index(b"\n", len(JSONL) // 2) + 1
    members = [pack(JSONL[:half]), pack(b""), pack(JSONL[half:]), pack(b"")]
    (tmp_path / f"a.jsonl{compression}").write_bytes(b"".join(members))
    assert texts(opened(tmp_path)) == TEXTS


def test_members_of_xz_may_be_padded(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl.xz").write_bytes(xz(JSONL[:200]) + bytes(8) + xz(JSONL[200:]) + bytes(4))
    assert texts(opened(tmp_path)) == TEXTS


def test_what_zstd_skips_is_skipped(tmp_path: Path) -> None:
    skipped = bytes.fromhex("502a4d18 04000000") + b"note"
    packed = skipped + zstd(JSONL[:200]) + skipped + zstd(JSONL[200:])
    (tmp_path / "a.jsonl.zst").write_bytes(packed)
    assert texts(opened(tmp_path)) == TEXTS


@pytest.mark.parametrize("compression", PACK)
@pytest.mark.parametrize(
    "harm",
    [
        lambda whole: whole[: len(whole) // 2],
        lambda whole: whole[:-1],
        lambda whole: whole[:3],
        lambda whole: b"",
        lambda whole: whole + whole[:-3],
        lambda whole: whole + b"and something else",
        lambda whole: b"not compressed at all, whatever its name says",
        lambda whole: whole[: len(whole) // 2] + b"harm" + whole[len(whole) // 2 + 4 :],
    ],
    ids=["half", "last byte", "header", "nothing", "second", "more", "other", "changed"],
)
def test_a_damaged_file_is_named(
    tmp_path: Path, compression: str, harm: Callable[[bytes], bytes]
) -> None:
    path = tmp_path / f"a.jsonl{compression}"
    path.write_bytes(harm(PACK[compression](JSONL)))
    with pytest.raises(InputError, match=rf"a\.jsonl{compression}: "):
        opened(path)
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.write(path, path.name)
    with pytest.raises(InputError, match=rf"a\.zip:a\.jsonl{compression}: "):
        opened(tmp_path / "a.zip")


def test_the_ending_may_be_in_capitals(tmp_path: Path) -> None:
    (tmp_path / "A.JSONL.GZ").write_bytes(gzip.compress(JSONL))
    assert texts(opened(tmp_path)) == TEXTS
