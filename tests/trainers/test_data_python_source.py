"""The corpus of the standard library: whole modules held out, the same on every machine."""

import hashlib
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from trainers.data.corpus import open_corpus
from trainers.data.documents import Document, LeftOut
from trainers.data.python_source import (
    HELD_OUT_BYTES,
    LARGEST_HELD_OUT,
    PythonSourceCorpus,
    held_out_modules,
    module_of,
)
from trainers.data.sources import PythonSource
from trialstore.errors import InputError


@pytest.fixture(scope="module")
def corpus() -> PythonSourceCorpus:
    opened = open_corpus(PythonSource())
    assert isinstance(opened, PythonSourceCorpus)
    return opened


def library(root: Path, modules: int = 60) -> Path:
    for number in range(modules):
        package = root / f"package{number}"
        package.mkdir(parents=True)
        for name in ("__init__", "core"):
            (package / f"{name}.py").write_text(f"# {number} {name}\n" * 20)
    return root


def test_it_is_about_eleven_megabytes_of_python(corpus: PythonSourceCorpus) -> None:
    assert 9e6 < corpus.total_bytes < 14e6
    names = {document.name for document in corpus.documents("train")}
    assert {"asyncio/tasks.py", "typing.py", "encodings/__init__.py"} <= names


def test_tests_and_what_is_installed_beside_the_library_are_left_out(
    corpus: PythonSourceCorpus,
) -> None:
    for _, document in corpus.assigned():
        folders = document.name.split("/")[:-1]
        assert not {"test", "tests", "site-packages", "pydoc_data"} & set(folders), document.name
        assert all(folder.isidentifier() for folder in folders)
        assert not document.name.startswith("_sysconfigdata")


def test_what_is_left_out_and_how_it_is_split_is_said(tmp_path: Path) -> None:
    root = library(tmp_path / "library")
    for folder in ("test", "package1/tests"):
        (root / folder).mkdir()
        (root / folder / "a.py").write_text("pass\n")
    corpus = PythonSourceCorpus(root)
    assert corpus.left_out == (LeftOut("tests and generated code", "", 2, "folders", "test"),)
    assert "modules" in corpus.split_rule
    assert {document.source for _, document in corpus.assigned()} == {"python-source"}


def test_no_module_is_on_both_sides(corpus: PythonSourceCorpus) -> None:
    train = {module_of(document) for document in corpus.documents("train")}
    heldout = {module_of(document) for document in corpus.documents("heldout")}
    assert heldout
    assert not train & heldout


def test_the_held_out_modules_are_many_small_ones(corpus: PythonSourceCorpus) -> None:
    sizes = Counter()
    for document in corpus.documents("heldout"):
        sizes[module_of(document)] += len(document.text.encode())
    share = sizes.total() / corpus.total_bytes
    assert HELD_OUT_BYTES <= share <= HELD_OUT_BYTES + LARGEST_HELD_OUT
    assert max(sizes.values()) <= sizes.total() * LARGEST_HELD_OUT / HELD_OUT_BYTES
    assert len(sizes) >= 10


def test_every_document_is_in_one_split_and_in_order(corpus: PythonSourceCorpus) -> None:
    both = [document.name for _, document in corpus.assigned()]
    train = [document.name for document in corpus.documents("train")]
    heldout = [document.name for document in corpus.documents("heldout")]
    assert both == sorted(both)
    assert sorted(train + heldout) == both


@pytest.mark.processes
def test_another_process_finds_the_same_fingerprint(corpus: PythonSourceCorpus) -> None:
    program = (
        "from trainers.data.corpus import open_corpus;"
        "from trainers.data.sources import PythonSource;"
        "print(open_corpus(PythonSource()).fingerprint)"
    )
    answer = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert answer.stdout.strip() == corpus.fingerprint


def test_the_fingerprint_does_not_depend_on_where_the_library_lies(tmp_path: Path) -> None:
    here = PythonSourceCorpus(library(tmp_path / "here")).fingerprint
    there = PythonSourceCorpus(library(tmp_path / "there")).fingerprint
    assert here == there
    assert len(bytes.fromhex(here)) == 8


@pytest.mark.parametrize("change", ["content", "name", "removal"])
def test_the_fingerprint_follows_every_change(tmp_path: Path, change: str) -> None:
    root = library(tmp_path / "library")
    before = PythonSourceCorpus(root).fingerprint
    target = root / "package7" / "core.py"
    match change:
        case "content":
            target.write_text(target.read_text() + "x")
        case "name":
            target.rename(target.with_name("other.py"))
        case "removal":
            target.unlink()
    assert PythonSourceCorpus(root).fingerprint != before


def test_a_module_too_large_is_never_held_out() -> None:
    names = [f"m{number}.py" for number in range(200)]
    documents = tuple(Document(name, "x" * 100) for name in names)
    first = min((name[:-3] for name in names), key=lambda m: hashlib.sha256(m.encode()).digest())
    assert first in held_out_modules(documents)
    grown = tuple(Document(d.name, "x" * 1000) if module_of(d) == first else d for d in documents)
    assert first not in held_out_modules(grown)


def test_the_rule_does_not_see_the_order_of_files() -> None:
    documents = [Document(f"m{number}/a.py", "x" * (50 + number)) for number in range(150)]
    shuffled = random.Random(0).sample(documents, len(documents))
    assert held_out_modules(tuple(documents)) == held_out_modules(tuple(shuffled))


def test_a_folder_without_sources_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="corpus python-source: "):
        PythonSourceCorpus(tmp_path)


def test_a_source_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    (tmp_path / "latin.py").write_bytes(b"# caf\xe9\n")
    with pytest.raises(InputError, match=r"latin\.py: byte 5 "):
        PythonSourceCorpus(tmp_path)
