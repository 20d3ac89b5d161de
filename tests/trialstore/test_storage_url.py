"""A storage's URL is read as a URL: no character of a name is dropped or taken for another."""

from pathlib import Path
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import fs

from trialstore.errors import InputError
from trialstore.storage import ArrowStorage, open_storage
from trialstore.storage_url import file_url_path

names = st.text(st.characters(exclude_characters="\0/", exclude_categories=["Cs"]), min_size=1)


@given(names)
@pytest.mark.long
def test_a_path_of_any_name_has_a_file_url(name: str) -> None:
    assert file_url_path(f"file:///storages/{quote(name)}") == Path("/storages", name)


def test_a_path_is_no_url(tmp_path: Path) -> None:
    for name in ("100%data", "a?b", "a#b", "a%20b", "a b"):
        storage = open_storage(tmp_path / name)
        storage.put("x", b"")
        assert storage.url == str(tmp_path / name)
        assert (tmp_path / name / "x").exists()


@pytest.mark.parametrize(
    "url", ["file:///x/100%data", "file:///x/a?b", "file:///x/a#b", "file:///x/100%"]
)
def test_a_file_url_with_a_name_pasted_in_is_refused(url: str) -> None:
    with pytest.raises(InputError, match=r"%25 for %.*%3F for \?"):
        open_storage(url)


@pytest.mark.parametrize(
    "url", ["file://", "file://runs", "file://elsewhere/runs", "file://./runs"]
)
def test_a_file_url_of_no_absolute_path_is_refused(url: str) -> None:
    with pytest.raises(InputError, match=r"file:///absolute/path"):
        open_storage(url)


def test_a_file_url_of_this_machine_and_of_a_home_are_local() -> None:
    assert file_url_path("file://localhost/x/a%20b") == Path("/x/a b")
    assert open_storage("file://~/runs").url == str(Path.home() / "runs")


@pytest.mark.parametrize(
    "url", ["s3://bucket/a#b?region=us-east-1", "gs://bucket/a#b", "mock:///a#b"]
)
def test_a_fragment_that_would_be_dropped_is_refused(url: str) -> None:
    with pytest.raises(InputError, match="%23 for #"):
        open_storage(url)


@pytest.mark.parametrize("name", ["100%data", "a b", "ä", "[x]"])
def test_a_name_pasted_into_an_object_stores_url_is_refused_with_its_code(name: str) -> None:
    with pytest.raises(InputError, match=r"%25 for %.*%20 for a space"):
        open_storage(f"s3://bucket/{name}?region=us-east-1")


@pytest.mark.parametrize("name", ["100%data", "a b", "ä", "[x]", "a#b", "a?b", "a;b&c"])
def test_an_escaped_name_is_the_folder_of_that_name(name: str) -> None:
    storage = open_storage(f"s3://bucket/{quote(name)}?region=us-east-1")
    assert storage.name == name
    assert open_storage(storage.child("sweep").url).name == "sweep"


def test_an_object_that_a_url_names_is_the_object() -> None:
    """A key is escaped in the URL that names it, and not in the store."""
    storage = ArrowStorage(fs._MockFileSystem(), "bucket", "s3://bucket?region=eu")
    assert storage.url_of("a b/100%") == "s3://bucket/a%20b/100%25?region=eu"
