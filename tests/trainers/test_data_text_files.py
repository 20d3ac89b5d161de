"""A corpus of the user's files: every kind read, every fault named, documents held out whole."""

import errno
import json
import os
import shutil
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from messages import mentions

from trainers.data.corpus import Corpus, open_corpus
from trainers.data.documents import content_digest, held_out_cut, split_of
from trainers.data.hub import pin
from trainers.data.sources import DataSource, TextFiles
from trialstore.errors import InputError

TEXTS = [f"document {number}: " + "word " * number for number in range(40)]


def opened(*paths: Path | str, column: str = "text") -> Corpus:
    return open_corpus(TextFiles(paths=[str(path) for path in paths], column=column))


def texts(corpus: Corpus) -> list[str]:
    return [document.text for _, document in corpus.assigned()]


def write(root: Path, kind: str, column: str = "text") -> Path:
    """The forty texts as one file or folder of a kind."""
    path = root / f"corpus.{kind}"
    match kind:
        case "txt" | "md" | "py":
            path = root / f"{kind}-files"
            path.mkdir()
            for number, text in enumerate(TEXTS):
                (path / f"{number:02}.{kind}").write_text(text)
        case "jsonl":
            path.write_text("".join(json.dumps({column: text, "id": 1}) + "\n" for text in TEXTS))
        case "csv":
            path.write_text(f"id,{column}\n" + "".join(f'1,"{text}"\n' for text in TEXTS))
        case "parquet":
            pq.write_table(pa.table({"id": list(range(40)), column: TEXTS}), path)
    return path


@pytest.mark.parametrize("kind", ["txt", "md", "py", "jsonl", "csv", "parquet"])
def test_every_kind_gives_the_same_documents(tmp_path: Path, kind: str) -> None:
    corpus = opened(write(tmp_path, kind))
    assert texts(corpus) == TEXTS
    assert corpus.total_bytes == sum(len(text.encode()) for text in TEXTS)


@pytest.mark.parametrize("kind", ["txt", "jsonl", "csv", "parquet"])
def test_a_zip_gives_what_its_members_would(tmp_path: Path, kind: str) -> None:
    path = write(tmp_path, kind)
    archive = tmp_path / "all.zip"
    with zipfile.ZipFile(archive, "w") as stream:
        for file in [path] if path.is_file() else path.iterdir():
            stream.write(file, file.name)
        stream.writestr("__MACOSX/._00.txt", b"\xff not a text")
        stream.writestr("LICENSE", "left out")
    assert texts(opened(archive)) == TEXTS


def test_another_column_can_be_named(tmp_path: Path) -> None:
    assert texts(opened(write(tmp_path, "jsonl", "content"), column="content")) == TEXTS


def test_csv_fields_may_be_long_and_hold_line_ends(tmp_path: Path) -> None:
    long = "a line\n" * 40_000
    (tmp_path / "a.csv").write_bytes(
        f'\ufefftext,id\r\n"{long}",1\r\n"b ""quoted""",2\r\n'.encode()
    )
    head, tail, short = texts(opened(tmp_path / "a.csv"))  # a giant is cut in two
    assert (head + tail, short) == (long, 'b "quoted"')


def test_globs_and_folders_reach_the_same_files_once(tmp_path: Path) -> None:
    folder = write(tmp_path, "txt")
    assert texts(opened(f"{folder}/*.txt")) == TEXTS
    assert texts(opened(folder, f"{folder}/**/*.txt", folder / "03.txt")) == TEXTS


def test_line_ends_and_unicode_come_through_unchanged(tmp_path: Path) -> None:
    given_texts = ["a\r\nb\r", "\u2028 \U0001f600\n\n"]
    for number, text in enumerate(given_texts):
        (tmp_path / f"{number}.txt").write_bytes(text.encode())
    assert texts(opened(tmp_path)) == given_texts


def test_empty_documents_and_blank_lines_are_no_documents(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\n\n{"text": ""}\n{"text": "two"}\n')
    assert texts(opened(tmp_path)) == ["one", "two"]


# --- the fingerprint and the split ---------------------------------------------------------


def test_the_fingerprint_survives_a_move_and_not_a_change(tmp_path: Path) -> None:
    folder = write(tmp_path, "txt")
    before = opened(folder).fingerprint
    moved = tmp_path / "elsewhere" / "corpus"
    shutil.copytree(folder, moved)
    assert opened(moved).fingerprint == before
    assert opened(f"{moved}/*.txt").fingerprint == before
    (moved / "05.txt").write_text("changed")
    assert opened(moved).fingerprint != before


def test_the_split_is_by_content_and_covers_everything(tmp_path: Path) -> None:
    corpus = opened(write(tmp_path, "jsonl"))
    train = {document.text for document in corpus.documents("train")}
    heldout = {document.text for document in corpus.documents("heldout")}
    assert train
    assert heldout
    assert not train & heldout
    assert train | heldout == set(TEXTS)
    renamed = opened(write(tmp_path, "txt"))
    assert {document.text for document in renamed.documents("heldout")} == heldout


def test_a_tenth_of_many_equal_documents_is_held_out(tmp_path: Path) -> None:
    rows = "".join(json.dumps({"text": f"number {number:04}"}) + "\n" for number in range(3000))
    (tmp_path / "many.jsonl").write_text(rows)
    assert sum(1 for _ in opened(tmp_path).documents("heldout")) == 300


@given(st.lists(st.text(min_size=1), min_size=2, unique=True))
def test_both_splits_have_a_document_however_few_there_are(contents: list[str]) -> None:
    digests = [content_digest(text) for text in contents]
    cut = held_out_cut(min(digests), max(digests))
    assert {split_of(text, cut) for text in contents} == {"train", "heldout"}


def test_copies_of_a_document_stay_together(tmp_path: Path) -> None:
    rows = [json.dumps({"text": f"text {number % 7}"}) + "\n" for number in range(70)]
    (tmp_path / "copies.jsonl").write_text("".join(rows))
    corpus = opened(tmp_path)
    train = {document.text for document in corpus.documents("train")}
    assert not train & {document.text for document in corpus.documents("heldout")}


@pytest.mark.parametrize("suffix", ["txt", "md"])
def test_the_end_of_a_lone_text_is_held_out(tmp_path: Path, suffix: str) -> None:
    whole = "".join(f"paragraph {number}\nof two lines\n\n" for number in range(200))
    (tmp_path / f"book.{suffix}").write_text(whole)
    corpus = opened(tmp_path)
    (head,), (tail,) = corpus.documents("train"), corpus.documents("heldout")
    assert head.text + tail.text == whole
    assert head.text.endswith("\n\n")
    assert 0.08 < len(tail.text) / len(whole) <= 0.1

    (remark,) = corpus.remarks
    assert mentions(remark, f"book.{suffix} ... 100% ... {len(tail.text):,} bytes")


def test_a_lone_text_without_line_ends_is_cut_between_words(tmp_path: Path) -> None:
    (tmp_path / "line.txt").write_text("one long line " * 100)
    head, tail = texts(opened(tmp_path))
    assert head == "one long line " * 90
    assert tail == "one long line " * 10


# --- faults --------------------------------------------------------------------------------


def test_text_that_is_not_utf8_is_named_with_its_offset(tmp_path: Path) -> None:
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    with pytest.raises(InputError, match=r"latin\.txt: byte 3 \(0xe9\)"):
        opened(tmp_path / "latin.txt")
    (tmp_path / "latin.jsonl").write_bytes(b'{"text": "a"}\n{"text": "\xe9"}\n')
    with pytest.raises(InputError, match=r"latin\.jsonl: byte 24 \(0xe9\)"):
        opened(tmp_path / "latin.jsonl")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"text": "cut o', r"bad\.jsonl:2: not JSON"),
        ('["a"]', r"bad\.jsonl:2: .*list"),
        ('{"content": "a"}', r"bad\.jsonl:2: no column 'text'.* content"),
        ('{"text": null}', r"bad\.jsonl:2: column 'text'.* NoneType"),
        ('{"text": 5}', r"bad\.jsonl:2: column 'text'.* int"),
        ('{"text": "\\ud800"}', r"bad\.jsonl:2: .* half a surrogate pair"),
    ],
)
def test_a_bad_json_line_is_named(tmp_path: Path, line: str, message: str) -> None:
    (tmp_path / "bad.jsonl").write_text('{"text": "fine"}\n' + line + "\n")
    with pytest.raises(InputError, match=message):
        opened(tmp_path)


def test_a_missing_or_wrong_column_of_a_table_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no column 'body'.* id, text"):
        opened(write(tmp_path, "parquet"), column="body")
    with pytest.raises(InputError, match=r"row 0: column 'id'.* int"):
        opened(tmp_path / "corpus.parquet", column="id")
    with pytest.raises(InputError, match=r"no column 'body'.* id, text"):
        opened(write(tmp_path, "csv"), column="body")


def test_a_short_csv_row_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("id,text\n1,one\n2\n")
    with pytest.raises(InputError, match=r"a\.csv:3: column 'text'.* NoneType"):
        opened(tmp_path)


@pytest.mark.parametrize(("name", "message"), [("a.parquet", "Parquet"), ("a.zip", "zip")])
def test_a_file_that_is_not_what_it_says_is_named(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / name).write_bytes(b"something else")
    with pytest.raises(InputError, match=message):
        opened(tmp_path / name)


def test_a_path_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.txt'"):
        opened(tmp_path / "none.txt")
    with pytest.raises(InputError, match=r"\*\.txt'"):
        opened(f"{tmp_path}/*.txt")


def test_a_folder_that_cannot_be_listed_is_named_and_not_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("open/a.txt", "closed/b.txt"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text("One document.\n\nAnother one.")
    look = os.scandir

    def refuse(path: str) -> object:
        if str(path).endswith("closed"):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return look(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(InputError, match=r"closed .*: Permission denied"):
        opened(tmp_path)


def test_an_unknown_kind_of_file_is_an_error_when_named_and_left_out_of_a_folder(
    tmp_path: Path,
) -> None:
    (tmp_path / "a.docx").write_bytes(b"PK")
    with pytest.raises(InputError, match=r"kind '\.docx'.* \(\.txt "):
        opened(tmp_path / "a.docx")
    with pytest.raises(InputError, match=r"1 \.docx \(another kind of file"):
        opened(tmp_path)
    folder = write(tmp_path, "txt")
    (folder / "README").write_text("left out")
    assert texts(opened(folder)) == TEXTS


def test_a_corpus_of_nothing_or_of_one_document_is_an_input_error(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": ""}\n')
    with pytest.raises(InputError, match="1 empty document"):
        opened(tmp_path)
    (tmp_path / "a.jsonl").write_text('{"text": "same"}\n' * 5)
    with pytest.raises(InputError, match="one distinct"):
        opened(tmp_path)
    (tmp_path / "a.jsonl").unlink()
    (tmp_path / "only.py").write_text("print()\n" * 100)
    assert texts(opened(tmp_path)) == ["print()\n" * 90, "print()\n" * 10]


def damaged(root: Path, how: str) -> Path:
    """A zip that opens, with a member that cannot be unpacked."""
    path = root / "a.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.txt", "some text\n" * 1000)
    content = bytearray(path.read_bytes())
    central = content.index(b"PK\1\2")
    if how == "deflate":
        content[40:50] = b"\xff" * 10
    elif how == "compression":
        content[central + 10 : central + 12] = (97).to_bytes(2, "little")
    elif how == "patched":
        content[central + 8] |= 0x20
    elif how == "version":
        content[central + 6 : central + 8] = (99).to_bytes(2, "little")
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("how", ["deflate", "compression", "patched", "version"])
def test_a_zip_that_cannot_be_unpacked_is_named(tmp_path: Path, how: str) -> None:
    with pytest.raises(InputError, match=r"a\.zip: (member a\.txt|cannot be read)"):
        opened(damaged(tmp_path, how))


def test_an_encrypted_member_is_named(tmp_path: Path) -> None:
    path = damaged(tmp_path, "not at all")
    content = bytearray(path.read_bytes())
    content[content.index(b"PK\1\2") + 8] |= 0x1
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"member a\.txt is encrypted"):
        opened(path)


def test_json_nested_too_deeply_is_named(tmp_path: Path) -> None:
    (tmp_path / "deep.jsonl").write_text('{"text": "a"}\n' + "[" * 100_000 + "\n")
    with pytest.raises(InputError, match=r"deep\.jsonl:2: "):
        opened(tmp_path)


@pytest.mark.parametrize("pattern", ["", "/*.txt", "/**/*"])
def test_links_that_form_a_loop_are_named(tmp_path: Path, pattern: str) -> None:
    (tmp_path / "a.txt").write_text("text\n")
    (tmp_path / "loop.txt").symlink_to(tmp_path / "loop.txt")
    with pytest.raises(InputError, match=r"loop\.txt: "):
        opened(f"{tmp_path}{pattern}")


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("", "corpus text: a path is empty"),
        (" ", "corpus text: a path is empty"),
        ("~no-such-user/x.txt", "path '~no-such-user/x.txt'"),
        ("a" * 5000, r"\(5000 characters\).*: File name too long"),
    ],
)
def test_a_path_that_cannot_be_one_is_named(path: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        opened(path)
    with pytest.raises(InputError, match=message):
        pin(DataSource(corpus=TextFiles(paths=[path])))


def test_a_lone_file_that_is_empty_is_said_to_be(tmp_path: Path) -> None:
    (tmp_path / "a.txt").touch()
    with pytest.raises(InputError, match=r"a\.txt: .*empty"):
        opened(tmp_path)
