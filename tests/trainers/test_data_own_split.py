"""The user's own held-out split: named paths, a named split, or files laid out as one."""

import json
import zipfile
from pathlib import Path

import pytest
from messages import mentions
from pydantic import ValidationError

from trainers.data.corpus import Corpus, open_corpus
from trainers.data.documents import LeftOut
from trainers.data.hub import pin
from trainers.data.layouts import part_of
from trainers.data.sources import DataSource, TextFiles
from trialstore.errors import InputError


def opened(*paths: Path, **options: object) -> Corpus:
    return open_corpus(
        TextFiles.model_validate({"paths": [str(path) for path in paths], **options})
    )


def side(corpus: Corpus, split: str) -> list[str]:
    return [document.text for part, document in corpus.assigned() if part == split]


def write(root: Path, *names: str) -> Path:
    """Files whose text says their name."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        text = f"text of {name}"
        path.write_text(json.dumps({"text": text}) if name.endswith(".jsonl") else text)
    return root


@pytest.mark.parametrize(
    ("train", "heldout", "test"),
    [
        ("train.txt", "valid.txt", "test.txt"),
        ("train.jsonl", "validation.jsonl", "test.jsonl"),
        ("train-00000-of-00002.jsonl", "val-00000-of-00001.jsonl", "test-00000-of-00001.jsonl"),
        ("train/a.txt", "validation/a.txt", "test/a.txt"),
        ("wiki.train.txt", "wiki.dev.txt", "wiki.test.txt"),
        ("en/train_0.txt", "en/eval_0.txt", "en/test_0.txt"),
        ("Train.txt", "HeldOut.txt", "TEST.txt"),
        ("training.txt", "held-out.txt", "testing.txt"),
        ("train_v2.jsonl", "held_out_v2.jsonl", "test_v2.jsonl"),
        ("data/train/part-0.txt", "data/dev/part-0.txt", "data/test/part-0.txt"),
    ],
)
def test_a_folder_laid_out_in_splits_is_recognised_and_said(
    tmp_path: Path, train: str, heldout: str, test: str
) -> None:
    corpus = opened(write(tmp_path, train, heldout, test))
    assert side(corpus, "train") == [f"text of {train}"]
    assert side(corpus, "heldout") == [f"text of {heldout}"]
    assert " validation " in corpus.split_rule
    (left_out,) = corpus.left_out
    assert left_out == LeftOut("test split", Path(test).suffix, 1, "files", test)


def test_without_validation_files_the_test_files_are_held_out(tmp_path: Path) -> None:
    corpus = opened(write(tmp_path, "train.txt", "test.txt"))
    assert side(corpus, "heldout") == ["text of test.txt"]
    assert " test " in corpus.split_rule
    assert not corpus.left_out


def test_the_folders_that_are_pointed_at_may_be_the_splits(tmp_path: Path) -> None:
    write(tmp_path, "train/a.txt", "valid/b.txt")
    corpus = opened(tmp_path / "train", tmp_path / "valid")
    assert side(corpus, "heldout") == ["text of valid/b.txt"]


def test_a_folder_called_test_does_not_make_test_files_of_what_lies_beside_a_training_file(
    tmp_path: Path,
) -> None:
    corpus = opened(write(tmp_path / "test", "train.txt", "books.txt"))
    assert "by content" in corpus.split_rule
    assert {document.source for _, document in corpus.assigned()} == {"train.txt", "books.txt"}


def test_zips_may_be_the_splits(tmp_path: Path) -> None:
    for name in ("train", "valid"):
        with zipfile.ZipFile(tmp_path / f"{name}.zip", "w") as archive:
            archive.writestr("a.txt", f"text for {name}")
    corpus = opened(tmp_path)
    assert side(corpus, "train") == ["text for train"]
    assert side(corpus, "heldout") == ["text for valid"]


def test_a_zip_may_be_laid_out_in_splits(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for name in ("set/train.txt", "set/dev.txt"):
            archive.writestr(name, f"text of {name}")
    assert side(opened(tmp_path / "a.zip"), "heldout") == ["text of set/dev.txt"]


@pytest.mark.parametrize(
    "names",
    [
        ("train.txt", "valid.txt", "more.txt"),  # one file of neither
        ("valid.txt", "test.txt"),  # nothing to train on
        ("train-0.txt", "train-1.txt"),  # nothing to hold out
        ("train-stations.txt", "test-cricket.txt"),  # names of things
        ("trains.txt", "tests.txt"),
    ],
)
def test_what_is_not_laid_out_in_splits_is_split_by_size(
    tmp_path: Path, names: tuple[str, ...]
) -> None:
    corpus = opened(write(tmp_path, *names))
    assert "about a tenth of the bytes" in corpus.split_rule
    assert not corpus.left_out


def test_a_file_that_keeps_a_layout_from_being_recognised_is_said(tmp_path: Path) -> None:
    corpus = opened(write(tmp_path, "train.txt", "valid.txt", "stations.txt"))

    (remark,) = corpus.remarks
    assert mentions(remark, "train.txt ... 1 other file ... stations.txt ... heldout")


def test_what_tells_of_the_data_hides_no_layout_and_is_left_out(tmp_path: Path) -> None:
    folder = write(tmp_path, "train.txt", "valid.txt", "LICENSE.txt")
    (folder / "docs").mkdir()
    (folder / "docs" / "README.md").write_text("about the data")
    corpus = opened(folder)
    assert " validation " in corpus.split_rule
    names = {document.name for _, document in corpus.assigned()}
    assert names == {"train.txt", "valid.txt"}
    assert corpus.left_out == (
        LeftOut("about the data", ".md", 1, "files", "docs/README.md"),
        LeftOut("about the data", ".txt", 1, "files", "LICENSE.txt"),
    )


def test_names_that_speak_of_splits_and_are_not_recognised_are_said(tmp_path: Path) -> None:
    for name in ("train_data", "valid_data"):
        texts = [f"text {n} of {name}, long enough to be of use" for n in range(40)]
        rows = "".join(json.dumps({"text": text}) + "\n" for text in texts)
        (tmp_path / f"{name}.jsonl").write_text(rows)
    (said,) = opened(tmp_path).remarks
    assert said.startswith("train_data.jsonl and valid_data.jsonl speak of splits in their names")


def test_a_test_file_that_is_trained_on_is_said(tmp_path: Path) -> None:
    """The user names the validation file alone, and the folder has a test file as well."""
    write(tmp_path, "train.txt", "valid.txt", "test.txt")
    corpus = opened(tmp_path, heldout=str(tmp_path / "valid.txt"))
    assert side(corpus, "train") == ["text of test.txt", "text of train.txt"]
    (said,) = corpus.remarks
    assert said.startswith("test.txt is called after a held-out split and trained on")
    both = [str(tmp_path / "valid.txt"), str(tmp_path / "test.txt")]
    assert not opened(tmp_path, heldout=both).remarks


def test_parts_are_the_outermost_name_that_says() -> None:
    assert part_of("train/test.txt") == "train"
    assert part_of("a/b/test.jsonl") == "test"
    assert part_of("unit_tests/a.txt") is None


def test_another_split_of_a_layout_can_be_asked_for(tmp_path: Path) -> None:
    folder = write(tmp_path, "train.txt", "dev.txt", "test.txt")
    corpus = opened(folder, heldout={"split": "test"})
    assert side(corpus, "heldout") == ["text of test.txt"]
    assert corpus.left_out == (LeftOut("validation split", ".txt", 1, "files", "dev.txt"),)
    named = opened(folder, heldout={"split": "validation"})
    assert side(named, "heldout") == side(opened(folder, heldout={"split": "dev"}), "heldout")
    assert corpus.fingerprint != named.fingerprint
    with pytest.raises(InputError, match=r"split 'extra'.* test, train, validation"):
        opened(folder, heldout={"split": "extra"})
    (folder / "other.txt").write_text("something else")
    with pytest.raises(InputError, match=r"split 'test'.*other\.txt"):
        opened(folder, heldout={"split": "test"})


def test_the_training_split_cannot_be_held_out(tmp_path: Path) -> None:
    write(tmp_path, "train.txt", "valid.txt")
    with pytest.raises(InputError, match=r"split 'training'.* name one of validation"):
        opened(tmp_path, heldout={"split": "training"})


def test_a_held_out_part_that_is_the_larger_is_said(tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text("one two three")
    (tmp_path / "test.txt").write_text("four five six " * 10)
    (said,) = opened(tmp_path).remarks
    assert said.startswith("more text is held out (140 bytes) than trained on (13 bytes)")


@pytest.mark.parametrize("form", ["file", "list", "folder", "glob"])
def test_held_out_is_what_the_user_names(tmp_path: Path, form: str) -> None:
    write(tmp_path, "a/one.txt", "a/two.txt", "b/three.txt")
    heldout = {
        "file": str(tmp_path / "b" / "three.txt"),
        "list": [str(tmp_path / "b" / "three.txt")],
        "folder": str(tmp_path / "b"),
        "glob": f"{tmp_path}/b/*",
    }[form]
    corpus = opened(tmp_path / "a", heldout=heldout)
    assert side(corpus, "train") == ["text of a/one.txt", "text of a/two.txt"]
    assert side(corpus, "heldout") == ["text of b/three.txt"]
    assert "heldout" in corpus.split_rule
    assert corpus.total_bytes == sum(map(len, side(corpus, "train") + side(corpus, "heldout")))


def test_a_file_on_both_sides_is_held_out_and_said_to_be(tmp_path: Path) -> None:
    write(tmp_path, "one.txt", "two.txt", "train.txt", "valid.txt")
    corpus = opened(tmp_path, heldout=str(tmp_path / "two.txt"))
    assert side(corpus, "heldout") == ["text of two.txt"]
    assert len(side(corpus, "train")) == 3
    assert "1 of them lie below paths too, and are not trained on" in corpus.split_rule
    with pytest.raises(InputError, match=f"heldout .*{tmp_path}"):
        opened(tmp_path, heldout=str(tmp_path))


def test_held_out_documents_with_a_trained_twin_are_counted_and_kept(tmp_path: Path) -> None:
    rows = [json.dumps({"text": f"a text\nof number {number}"}) + "\n" for number in range(9)]
    (tmp_path / "a.jsonl").write_text("".join(rows))
    (tmp_path / "b.jsonl").write_text("".join(rows[:2]).replace("\\n", "\\r\\n") + rows[8] * 2)
    (tmp_path / "c.jsonl").write_text('{"text": "something new"}\n')
    corpus = opened(
        tmp_path / "a.jsonl", heldout=[str(tmp_path / "b.jsonl"), str(tmp_path / "c.jsonl")]
    )

    (remark,) = corpus.remarks
    assert "4 of 5 held-out documents" in remark
    assert len(side(corpus, "train")) == 9
    assert len(side(corpus, "heldout")) == 5


def test_the_fingerprint_follows_the_choice(tmp_path: Path) -> None:
    write(tmp_path, "one.txt", "two.txt", "three.txt")
    by_size = opened(tmp_path)
    two = opened(tmp_path, heldout=str(tmp_path / "two.txt"))
    three = opened(tmp_path, heldout=str(tmp_path / "three.txt"))
    assert len({by_size.fingerprint, two.fingerprint, three.fingerprint}) == 3


def test_a_held_out_path_that_is_not_there_is_named(tmp_path: Path) -> None:
    write(tmp_path, "one.txt")
    with pytest.raises(InputError, match=r"none\.txt'"):
        opened(tmp_path, heldout=str(tmp_path / "none.txt"))


def test_a_held_out_file_of_no_text_is_an_input_error(tmp_path: Path) -> None:
    write(tmp_path, "one.txt")
    (tmp_path / "empty.txt").write_text("\n")
    with pytest.raises(InputError, match="the held-out files"):
        opened(tmp_path / "one.txt", heldout=str(tmp_path / "empty.txt"))
    with pytest.raises(InputError, match="the training files"):
        opened(tmp_path / "empty.txt", heldout=str(tmp_path / "one.txt"))


@pytest.mark.parametrize("heldout", [5, [], [1], {"split": 1}, {"splits": "test"}, {}])
def test_what_is_neither_paths_nor_a_split_is_refused_with_what_is_allowed(
    heldout: object,
) -> None:
    with pytest.raises(ValidationError, match=r"split: validation"):
        TextFiles.model_validate({"paths": ["a"], "heldout": heldout})


def test_pinning_makes_held_out_paths_absolute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    pinned = pin(DataSource(corpus=TextFiles.model_validate({"paths": ["a"], "heldout": "b"})))
    assert isinstance(pinned.corpus, TextFiles)
    assert pinned.corpus.heldout == [str(tmp_path / "b")]
    assert pinned == DataSource.model_validate_json(pinned.model_dump_json())
