"""What a corpus holds is said: what is left out and why, what is counted as what."""

import gzip
import json
import os
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from trainers.data.corpus import Corpus, open_corpus
from trainers.data.documents import LeftOut
from trainers.data.sources import BytesTokenizer, DataSource, TextFiles
from trainers.data.store import open_store
from trialstore.errors import InputError

TEXT = "A document of some words.\n"


def opened(*paths: Path | str, **options: object) -> Corpus:
    return open_corpus(
        TextFiles.model_validate({"paths": [str(path) for path in paths], **options})
    )


def texts(corpus: Corpus) -> list[str]:
    return [document.text for _, document in corpus.assigned()]


def write(root: Path, *names: str) -> Path:
    for number, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        text = f"{number} {TEXT}"
        if name.endswith(".jsonl.gz"):
            path.write_bytes(gzip.compress(json.dumps({"text": text}).encode()))
        else:
            path.write_text(json.dumps({"text": text}) if name.endswith(".jsonl") else text)
    return root


def test_files_that_are_left_out_are_counted_by_reason_and_ending(tmp_path: Path) -> None:
    folder = write(
        tmp_path, "a.txt", "b.txt", ".c.txt", "d.jsonl.lz4", "e.jsonl.lz4", "f.pdf", "README.md",
        "sub/README.md", ".git/config", "LICENSE", "set.tar.gz", "c4.json.gz",
    )  # fmt: skip
    corpus = opened(folder)
    assert corpus.left_out == (
        LeftOut("another kind of file", ".jsonl.lz4", 2, "files", "d.jsonl.lz4"),
        LeftOut("another kind of file", "", 1, "files", "LICENSE"),
        LeftOut("another kind of file", ".json.gz", 1, "files", "c4.json.gz"),
        LeftOut("another kind of file", ".pdf", 1, "files", "f.pdf"),
        LeftOut("another kind of file", ".tar.gz", 1, "files", "set.tar.gz"),
        LeftOut("data card", ".md", 1, "files", "README.md"),
        LeftOut("hidden", "", 1, "folders", ".git"),
        LeftOut("hidden", ".txt", 1, "files", ".c.txt"),
    )
    assert [text[0] for text in texts(corpus)] == ["0", "1", "7"]  # a card is at the root alone


def test_a_card_is_a_document_where_it_is_named(tmp_path: Path) -> None:
    write(tmp_path, "README.md", "a.md")
    assert len(texts(opened(f"{tmp_path}/*.md", tmp_path / "README.md"))) == 2
    assert len(texts(opened(f"{tmp_path}/README*", tmp_path / "a.md"))) == 2
    with pytest.raises(InputError, match="one distinct document"):
        opened(f"{tmp_path}/*.md")


def test_a_folder_of_which_everything_is_left_out_says_what_is_there(tmp_path: Path) -> None:
    write(tmp_path, "README.md", "a.pdf", "b.pdf", ".hidden.txt")
    with pytest.raises(
        InputError,
        match=r"2 \.pdf \(another kind of file, such as a\.pdf\), "
        r"1 \.md \(data card, such as README\.md\), 1 \.txt \(hidden, ",
    ):
        opened(tmp_path)


def test_folders_behind_links_are_told_of(tmp_path: Path) -> None:
    write(tmp_path, "here/a.txt", "here/b.txt", "there/c.txt")
    os.symlink(tmp_path / "there", tmp_path / "here" / "linked")
    assert opened(tmp_path / "here").left_out == (
        LeftOut("behind a link", "", 1, "folders", "linked"),
    )


def test_a_folder_whose_name_looks_like_a_pattern_is_that_folder(tmp_path: Path) -> None:
    write(tmp_path, "set[1]/a.txt", "set[1]/b.txt", "set1/c.txt", "in/set[1]/d.txt")
    assert [text[0] for text in texts(opened(f"{tmp_path}/set[1]/*.txt"))] == ["0", "1"]
    assert [text[0] for text in texts(opened(tmp_path / "set[1]"))] == ["0", "1"]
    assert [text[0] for text in texts(opened(f"{tmp_path}/set[12]/*", tmp_path / "in"))] == [
        "2",
        "3",
    ]


def test_a_name_that_is_not_utf8_is_no_obstacle(tmp_path: Path) -> None:
    for name in (b"caf\xe9.txt", b"b.txt"):
        with open(os.path.join(os.fsencode(tmp_path), name), "wb") as stream:
            stream.write(name[:1] + TEXT.encode())
    assert [text[0] for text in texts(opened(tmp_path))] == ["b", "c"]


def test_names_that_no_record_can_hold_are_written_with_their_bytes(tmp_path: Path) -> None:
    """A store writes sources and what is left out as JSON, and must read them again."""
    rows = "".join(json.dumps({"text": f"story {n}"}) + "\n" for n in range(40)).encode()
    for name in (b"caf\xe9.jsonl", b"a\nb.jsonl", b"na\xefve.pdf"):
        with open(os.path.join(os.fsencode(tmp_path), name), "wb") as stream:
            stream.write(rows)
    config = TextFiles(paths=[str(tmp_path)])
    store = open_store(DataSource(corpus=config, tokenizer=BytesTokenizer()), tmp_path / "cache")
    sources = {part.source for part in store.meta.contents.sources}
    assert sources == {"caf\\xe9.jsonl", "a\\nb.jsonl"}
    (left_out,) = store.meta.contents.left_out
    assert left_out.example == "na\\xefve.pdf"


def test_a_file_that_is_met_twice_is_read_once_and_told_of(tmp_path: Path) -> None:
    write(tmp_path, "a.txt", "b.txt")
    corpus = opened(tmp_path, f"{tmp_path}/*.txt")
    assert len(texts(corpus)) == 2
    assert corpus.left_out == (LeftOut("met twice", ".txt", 2, "files", "a.txt"),)


def test_a_file_beside_its_compressed_self_is_told_of(tmp_path: Path) -> None:
    corpus = opened(write(tmp_path, "a.jsonl", "a.jsonl.gz", "b.jsonl"))
    assert corpus.remarks == (
        "1 files stand there compressed and not, and are read twice, such as a.jsonl: remove one "
        "of the two",
    )


def test_members_of_a_zip_that_are_left_out_are_counted(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for name in ("s/a.txt", "s/b.txt", "s/README.md", "s/._a.txt", "s/c.docx", "s/in/README"):
            archive.writestr(name, f"{name} {TEXT}")
    corpus = opened(tmp_path / "a.zip")
    assert len(texts(corpus)) == 2
    assert [(row.reason, row.suffix, row.count) for row in corpus.left_out] == [
        ("another kind of file", "", 1),
        ("another kind of file", ".docx", 1),
        ("data card", ".md", 1),
        ("hidden", ".txt", 1),
    ]


def test_the_card_of_a_zip_that_macos_packed_is_a_card(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for name in ("set/a.txt", "set/b.txt", "set/README.md", "__MACOSX/set/._a.txt"):
            archive.writestr(name, f"{name} {TEXT}")
    corpus = opened(tmp_path)
    assert {left.reason for left in corpus.left_out} == {"data card", "hidden"}
    assert sorted(text[:9] for text in texts(corpus)) == ["set/a.txt", "set/b.txt"]


def test_empty_documents_are_counted(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\n{"text": ""}\n{"text": " \\n"}\n')
    (tmp_path / "b.txt").write_text("two")
    (tmp_path / "c.txt").write_text("\ufeff\n")
    assert opened(tmp_path).left_out == (
        LeftOut("empty document", ".jsonl", 2, "documents", "a.jsonl:2"),
        LeftOut("empty document", ".txt", 1, "documents", "c.txt"),
    )


# --- sources -------------------------------------------------------------------------------


def test_tables_without_rows_are_counted(tmp_path: Path) -> None:
    """Such as a download that broke off before its first byte leaves."""
    write(tmp_path, "s-0.jsonl", "s-1.jsonl")
    (tmp_path / "s-2.jsonl").write_text("")
    (tmp_path / "s-3.jsonl.gz").write_bytes(gzip.compress(b"\n\n"))
    (tmp_path / "s-4.csv").write_text("text,n\n")
    pq.write_table(pa.table({"text": pa.array([], pa.string())}), tmp_path / "s-5.parquet")
    (tmp_path / "s-6.jsonl").write_text('{"text": null}\n')  # it has a row, and a reason
    assert opened(tmp_path, on_bad_row="skip").left_out == (
        LeftOut("no rows", ".csv", 1, "files", "s-4.csv"),
        LeftOut("no rows", ".jsonl", 1, "files", "s-2.jsonl"),
        LeftOut("no rows", ".jsonl.gz", 1, "files", "s-3.jsonl"),
        LeftOut("no rows", ".parquet", 1, "files", "s-5.parquet"),
        LeftOut("null row", ".jsonl", 1, "rows", "s-6.jsonl:1"),
    )
    with pytest.raises(InputError, match=r"\(1 no rows\)"):
        opened(tmp_path / "s-2.jsonl")


def sources(corpus: Corpus) -> list[str]:
    return list(dict.fromkeys(document.source for _, document in corpus.assigned()))


def test_a_source_is_a_file_a_folder_or_a_set_of_shards(tmp_path: Path) -> None:
    folder = write(
        tmp_path, "shard-00000.jsonl.gz", "shard-00001.jsonl.gz", "news/1.txt", "news/2.txt",
        "book-2019.txt", "wiki1.jsonl", "wiki2.jsonl.gz",
    )  # fmt: skip
    expected = {"shard-*.jsonl.gz", "news", "book-2019.txt", "wiki*.jsonl"}
    assert set(sources(opened(folder))) == expected
    assert set(sources(opened(f"{folder}/*.*", folder / "news"))) == {
        *(expected - {"news"}),
        "*.txt",
    }


def test_equal_names_in_two_places_are_two_sources(tmp_path: Path) -> None:
    write(tmp_path, "en/a.txt", "fr/a.txt")
    corpus = opened(tmp_path / "en", tmp_path / "fr")
    assert sources(corpus) == ["en/a.txt", "fr/a.txt"]


def test_documents_of_one_source_follow_each_other(tmp_path: Path) -> None:
    folder = write(tmp_path, "a1.txt", "a1b.txt", "a2.txt", "a2b.txt")
    order = [document.source for _, document in opened(folder).assigned()]
    assert order == ["a*.txt", "a*.txt", "a*b.txt", "a*b.txt"]


def test_a_folder_of_many_names_is_counted_by_kind(tmp_path: Path) -> None:
    letters = [f"{chr(97 + n % 26)}{chr(97 + n // 26)}" for n in range(60)]
    folder = write(tmp_path, *(f"{letter}.txt" for letter in letters), "in/x.md")
    assert set(sources(opened(folder))) == {"*.txt", "in"}


# --- separators ----------------------------------------------------------------------------


def stories(ending: str = "\n") -> str:
    return f"{ending}<|endoftext|>{ending}".join(f"story {n}{ending}of lines" for n in range(40))


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
def test_a_separator_splits_a_file_into_documents(tmp_path: Path, ending: str) -> None:
    (tmp_path / "a.txt").write_bytes(stories(ending).encode())
    corpus = opened(tmp_path, separator="<|endoftext|>")
    assert texts(corpus) == [f"story {n}{ending}of lines" for n in range(40)]
    assert not corpus.remarks
    assert not corpus.left_out


def test_one_line_end_beside_a_separator_goes_and_empty_documents_are_counted(
    tmp_path: Path,
) -> None:
    (tmp_path / "a.md").write_text("\n\none\n\n---\n  two---\n---three\n---\n")
    corpus = opened(tmp_path, separator="---")
    assert texts(corpus) == ["\n\none\n", "  two", "three"]
    assert corpus.left_out == (LeftOut("empty document", ".md", 1, "documents", "a.md:2"),)


def test_a_separator_is_found_wherever_the_file_is_read_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.txt").write_text(stories())
    whole = texts(opened(tmp_path, separator="<|endoftext|>"))
    for chunk in (1, 7, 13, 14):
        monkeypatch.setattr("trainers.data.readers._CHUNK", chunk)
        assert texts(opened(tmp_path, separator="<|endoftext|>")) == whole


def test_a_bad_byte_behind_a_separator_is_named_by_its_place_in_the_file(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"one\n<>\ntwo\n<>\ncaf\xe9")
    with pytest.raises(InputError, match=r"a\.txt: byte 17 \(0xe9\)"):
        opened(tmp_path, separator="<>")


def test_a_separator_that_is_nowhere_is_refused_and_one_that_is_not_everywhere_said(
    tmp_path: Path,
) -> None:
    write(tmp_path, "a.txt", "b.txt")
    with pytest.raises(InputError, match=r"none of the 2 files .*'<sep>'"):
        opened(tmp_path, separator="<sep>")
    (tmp_path / "c.txt").write_text("one<sep>two")
    assert opened(tmp_path, separator="<sep>").remarks == (
        "2 files of 3 do not hold the separator and are one document each",
    )


def test_the_separator_enters_the_fingerprint(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(stories())
    assert (
        opened(tmp_path, separator="<|endoftext|>").fingerprint
        != opened(tmp_path, separator="\n<|endoftext|>\n").fingerprint
    )


@pytest.mark.parametrize(
    ("mark", "shown"),
    [
        ("<|endoftext|>", "<|endoftext|>"),
        ("<|eot_id|>", "<|eot_id|>"),
        ("</s>", "</s>"),
        ("<eos>", "<eos>"),
        ("[EOS]", "[EOS]"),
        ("</doc>", "</doc>"),
        ("<doc>", "<doc>"),
        ("<end_of_text>", "<end_of_text>"),
        ("<\uff5cend\u2581of\u2581sentence\uff5c>", "<\uff5cend\u2581of\u2581sentence\uff5c>"),
        ("=====", "====="),
        ("***", "***"),
        ("%", "%"),
    ],
)
def test_what_looks_like_a_mark_between_documents_is_said(
    tmp_path: Path, mark: str, shown: str
) -> None:
    (tmp_path / "a.txt").write_text(f"\n{mark}\n".join(f"story {n} of words" for n in range(40)))
    assert any(
        remark.startswith(f"a.txt holds {shown!r} 39 times, which looks like a mark")
        and remark.endswith(
            f'separator: "{shown}" in the corpus section splits .txt, .md and .py files there'
        )
        for remark in opened(tmp_path).remarks
    )


def test_of_tags_with_attributes_no_separator_is_advised_that_would_be_refused(
    tmp_path: Path,
) -> None:
    (tmp_path / "a.txt").write_text("".join(f'<doc id="{n}">\nstory {n}\n' for n in range(40)))
    (said,) = (remark for remark in opened(tmp_path).remarks if "looks like" in remark)
    assert said.startswith("a.txt holds '<doc ...>' 40 times")
    assert said.endswith("no separator can name it; give a document a file, or a row of a table")


def test_marks_in_tables_are_said_and_how_often(tmp_path: Path) -> None:
    rows = [json.dumps({"text": f"one {n}<|endoftext|>two"}) + "\n" for n in range(30)]
    (tmp_path / "a.jsonl").write_text("".join(rows))
    (tmp_path / "b.jsonl").write_text(rows[0])
    (remark,) = opened(tmp_path).remarks
    assert remark == (
        "a.jsonl holds '<|endoftext|>' 30 times (in 2 files, 31 times), which looks like a mark "
        "between documents and is read as text: rows of tables are not split at it; give a "
        "document a row"
    )


def test_headings_and_comparisons_are_no_marks(tmp_path: Path) -> None:
    for number in range(12):
        text = f"# Title\n\n---\n\na < b and c > d [1] <b>bold</b>\n=====\nnumber {number} {TEXT}"
        (tmp_path / f"{number}.md").write_text(text)
    assert not opened(tmp_path).remarks


# --- bad rows ------------------------------------------------------------------------------

GOOD = [f"a text of number {number:02}" for number in range(20)]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"text": null}', "null row"),
        ('{"other": "a"}', "no such column"),
        ('{"text": ["a"]}', "not text"),
        ('{"text": "\\ud800"}', "half a surrogate pair"),
        ('{"text": "cut o', "not JSON"),
        ('"text"', "not an object"),
        ('{"text": "a", "text": "b"}', "a key twice"),
        ('{"text": "a", "id": 1, "id": 1}', "a key twice"),
        (b'{"text": "\xe9"}', "not UTF-8"),
    ],
)
def test_bad_lines_are_refused_or_skipped_and_counted(
    tmp_path: Path, line: str | bytes, reason: str
) -> None:
    bad = line if isinstance(line, bytes) else line.encode()
    rows = [json.dumps({"text": text, "meta": {"a": 1}}).encode() for text in GOOD]
    (tmp_path / "a.jsonl").write_bytes(b"\n".join([rows[0], bad, bad, *rows[1:]]))
    with pytest.raises(InputError, match=r"a\.jsonl:(2| byte \d+)") as refused:
        opened(tmp_path)
    assert "on_bad_row: skip" in str(refused.value)
    corpus = opened(tmp_path, on_bad_row="skip")
    assert texts(corpus) == GOOD
    assert corpus.left_out == (LeftOut(reason, ".jsonl", 2, "rows", "a.jsonl:2"),)


def test_a_key_that_is_twice_in_an_inner_object_leaves_the_text_alone(tmp_path: Path) -> None:
    rows = [f'{{"meta": {{"a": 1, "a": 2}}, "text": "{text}"}}\n' for text in GOOD]
    (tmp_path / "a.jsonl").write_text("".join(rows))
    assert texts(opened(tmp_path)) == GOOD


def test_csv_rows_of_too_few_or_too_many_cells_are_bad(tmp_path: Path) -> None:
    good = "".join(f"{number},{text}\n" for number, text in enumerate(GOOD))
    for bad, reason in (("1\n", "too few cells"), ("1,a, b\n", "too many cells")):
        (tmp_path / "a.csv").write_text(f"id,text\n{bad}\n{good}")
        with pytest.raises(InputError, match=r"a\.csv:2.* [13] cells.* header has 2"):
            opened(tmp_path)
        corpus = opened(tmp_path, on_bad_row="skip")
        assert texts(corpus) == GOOD
        assert corpus.left_out == (LeftOut(reason, ".csv", 1, "rows", "a.csv:2"),)


@pytest.mark.parametrize("on_bad_row", ["refuse", "skip"])
def test_a_header_that_names_a_column_twice_is_refused(tmp_path: Path, on_bad_row: str) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    (tmp_path / "a.csv").write_text("text,id,text\none,1,two\n")
    with pytest.raises(InputError, match=r"a\.csv: .*'text'"):
        opened(tmp_path / "a.csv", on_bad_row=on_bad_row)
    table = pa.table([pa.array(["a"]), pa.array(["b"])], names=["text", "text"])
    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(InputError, match=r"a\.parquet: .*'text'"):
        opened(tmp_path / "a.parquet", on_bad_row=on_bad_row)


def test_bad_rows_of_parquet_are_skipped_and_counted(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    raw = pa.array([*(text.encode() for text in GOOD), b"caf\xe9", None]).cast(pa.binary())
    text = pa.Array.from_buffers(pa.string(), len(raw), raw.buffers())
    pq.write_table(pa.table({"text": text}), tmp_path / "a.parquet")
    with pytest.raises(InputError, match=r"row 20: column 'text'"):
        opened(tmp_path)
    corpus = opened(tmp_path, on_bad_row="skip")
    assert texts(corpus) == GOOD
    assert [(row.reason, row.count) for row in corpus.left_out] == [
        ("not UTF-8", 1),
        ("null row", 1),
    ]


def test_a_corpus_whose_every_row_is_skipped_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"body": "a"}\n' * 3)
    with pytest.raises(InputError, match=r"\(3 no such column\)"):
        opened(tmp_path, on_bad_row="skip")


def test_a_file_that_changes_between_two_passes_is_noticed(tmp_path: Path) -> None:
    write(tmp_path, "a.txt", "b.txt")
    corpus = opened(tmp_path)
    (tmp_path / "b.txt").write_text("something else")
    with pytest.raises(InputError, match=r"b\.txt: "):
        texts(corpus)
