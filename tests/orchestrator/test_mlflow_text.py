"""What MLflow shows of a long value is whole as far as it goes, and says that it is not all."""

import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.mlflow.text import CALL_BYTES, calls, fitted, storable
from orchestrator.mlflow.tracking import Tracking, tracking_uri
from trialstore.storage import LocalStorage

LIMIT = 6000  # of a param, in MLflow 3.17 (mlflow.utils.validation)


def test_what_fits_is_not_touched():
    widths = ", ".join(map(str, range(1000, 2000)))
    assert len(widths) == 5998
    assert fitted(widths, LIMIT) == widths
    assert fitted("x" * LIMIT, LIMIT) == "x" * LIMIT


@given(st.lists(st.integers(0, 10**9), min_size=20), st.integers(100, 400))
def test_a_list_is_cut_between_its_numbers_and_counts_what_is_left_out(
    numbers: list[int], length: int
):
    text = ", ".join(map(str, numbers))
    shown = fitted(text, length)
    assert len(shown) <= length
    if shown == text:
        return
    assert len(text) > length
    kept, left = re.fullmatch(r"(.*), \.\.\. \(([\d,]+) more values are left out\)", shown).groups()
    kept_numbers = [int(number) for number in kept.split(", ")]
    assert kept_numbers == numbers[: len(kept_numbers)]
    assert int(left.replace(",", "")) == len(numbers) - len(kept_numbers)
    # Another element would not have fitted.
    longer = (
        f"{kept}, {numbers[len(kept_numbers)]}, ... ({len(numbers):,} more values are left out)"
    )
    assert len(longer) > length


def test_a_note_is_cut_between_its_lines():
    note = "\n".join(f"group {number}: widen, or not, as it says" for number in range(400))
    shown = fitted(note, 500)
    *lines, last = shown.split("\n")
    assert lines == note.split("\n")[: len(lines)]
    assert f"{400 - len(lines)} more lines" in last


def test_a_text_without_elements_says_how_long_it_is():
    shown = fitted("x" * 7000, LIMIT)
    assert len(shown) == LIMIT
    assert shown.endswith("x... (7,000 characters in all)")


@given(st.text(st.characters(codec=None), max_size=300), st.integers(60, 200))
def test_no_text_is_longer_than_the_limit_or_holds_what_a_database_cannot(text: str, length: int):
    shown = storable(text, length)
    assert len(shown) <= length
    assert "\0" not in shown
    shown.encode()


@given(st.dictionaries(st.text(max_size=20), st.integers(0, CALL_BYTES // 8)), st.integers(1, 100))
def test_calls_lose_nothing_and_none_is_too_large(sizes: dict[str, int], most: int):
    texts = {key: "ä" * (size // 6) for key, size in sizes.items()}
    sent = list(calls(texts, most))
    assert {key: text for call in sent for key, text in call.items()} == texts
    assert sum(map(len, sent)) == len(texts)
    for call in sent:
        assert 0 < len(call) <= most
        assert len(call) == 1 or len(json.dumps(call)) < 1_000_000


@pytest.mark.parametrize("count", [1000, 5000])
def test_mlflow_keeps_as_much_as_it_takes(
    tmp_path: Path, template: Path, plain_environment: None, count: int
):
    widths = [1000 + number for number in range(count)]
    (tmp_path / "mlflow.db").write_bytes(template.read_bytes())
    tracking = Tracking(tracking_uri(LocalStorage(tmp_path)), "long")
    run = tracking.create("run", {"D": ", ".join(map(str, widths))}, 1)
    tracking.send_params(run.run_id, {"D": ", ".join(map(str, widths))})
    found = tracking._client.get_run(run.run_id).data
    for shown, limit in ((found.params["D"], LIMIT), (found.tags["D"], 8000)):
        kept = [int(number) for number in shown.partition(", ...")[0].split(", ")]
        assert kept == widths[: len(kept)]
        if len(kept) < count:
            assert shown.endswith(f"({count - len(kept):,} more values are left out)")
            assert limit - 50 < len(shown) <= limit
    assert (count == 1000) == (found.params["D"] == ", ".join(map(str, widths)))
