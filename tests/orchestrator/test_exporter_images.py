"""Pictures of a trial's spectra are in MLflow, each once, and never in the way of its points."""

import math
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from exporter_bench import Bench, checkpoint, expected, finish_trial, give_up, put_rows, rows_of
from matplotlib.image import imread

from orchestrator.mlflow import images as exporter_images
from orchestrator.mlflow.artifacts import PAUSE_S, Artifacts
from orchestrator.mlflow.images import DrawingTime, TrialImages
from orchestrator.mlflow.tracking import ServerAwayError, Tracking
from orchestrator.mlflow.trial_view import TrialView
from trialstore.records import RESULT

pytestmark = pytest.mark.long

HEAT_MAP, SPECTRUM = "spectra/post/heat_map", "spectra/post/spectrum"


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Images are a pixel each: what is sent and when does not depend on what is on them."""
    pixel = np.zeros((1, 1, 3), np.uint8)
    monkeypatch.setattr("analysis.figures.style.pixels", lambda figure, dpi: pixel)
    for name in ("rank_heat_map", "spectrum_over_training"):
        monkeypatch.setattr(f"analysis.figures.spectrum_figures.{name}", lambda snapshots: "drawn")


@pytest.fixture
def bench(tmp_path: Path, template: Path, plain_environment: None, undrawn: None) -> Bench:
    """A sweep of one trial and its database, with images."""
    return Bench(tmp_path, template)


@pytest.fixture
def no_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    """Images at every look."""
    monkeypatch.setattr(exporter_images, "IMAGE_INTERVAL_S", 0.0)


def images(bench: Bench, number: int = 0) -> Counter[tuple[str, int]]:
    """(key, step) of every image that MLflow can show, with multiplicity."""
    run = bench.child(number).info.run_id
    found = (
        re.fullmatch(r"images/(.+)\+step\+(\d+)\+.*\+compressed\.webp", file.path)
        for file in bench.client.list_artifacts(run, "images")
    )
    return Counter((m.group(1).replace("~", "/"), int(m.group(2))) for m in found if m)


def both(*steps: int) -> Counter[tuple[str, int]]:
    return Counter((key, step) for key in (HEAT_MAP, SPECTRUM) for step in steps)


def test_a_running_trial_shows_its_first_and_newest_snapshot_and_at_its_end_the_last(
    bench: Bench,
) -> None:
    trial = bench.begin()
    exporter = bench.exporter()
    put_rows(trial, 1, 0, 10)
    exporter.sync_once()
    assert images(bench) == both(0)
    put_rows(trial, 1, 11, 30)
    exporter.sync_once()
    assert images(bench) == both(0)  # not again within a minute
    put_rows(trial, 1, 31, 40)
    finish_trial(trial)
    exporter.sync_once()
    assert images(bench) == both(0, 40)
    assert bench.child().info.status == "FINISHED"
    assert bench.points() == expected(rows_of(0, 40))


def test_an_image_has_the_time_of_its_snapshot(bench: Bench) -> None:
    put_rows(bench.begin(), 1, 20, 20)
    bench.exporter().sync_once()
    files = bench.client.list_artifacts(bench.child().info.run_id, "images")
    (newest,) = {row["time_ms"] for row in rows_of(20, 20)["spectra"]}
    assert {re.search(r"timestamp\+(\d+)", file.path)[1] for file in files} == {str(newest)}


def test_a_second_exporter_sends_no_image_again(bench: Bench, no_rest: None) -> None:
    trial = bench.begin()
    put_rows(trial, 1, 0, 20)
    for _ in range(2):
        bench.exporter().sync_once()
    assert images(bench) == both(0, 20)
    put_rows(trial, 1, 21, 40)
    finish_trial(trial)
    for _ in range(2):
        bench.exporter().sync_once()
    assert images(bench) == both(0, 20, 40)


def test_an_exporter_killed_between_two_images_sends_the_other_and_doubles_nothing(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    send = Tracking.send_image

    def dies(self: Tracking, run_id: str, image: Any) -> None:
        if image.key == SPECTRUM:
            raise Killed
        send(self, run_id, image)

    trial = bench.begin()
    put_rows(trial, 1, 0, 40)
    finish_trial(trial)
    with monkeypatch.context() as patched:
        patched.setattr(Tracking, "send_image", dies)
        with pytest.raises(Killed):
            bench.exporter().sync_once()
    assert images(bench) == Counter([(HEAT_MAP, 0)])
    bench.exporter().sync_once()
    assert images(bench) == both(0, 40)


def test_a_retry_shows_nothing_that_was_shown_and_ends_at_the_same_step(
    bench: Bench, no_rest: None
) -> None:
    trial = bench.begin()
    put_rows(trial, 1, 0, 20)
    checkpoint(trial, 20, 1)
    put_rows(trial, 1, 21, 40)
    exporter = bench.exporter()
    exporter.sync_once()
    assert images(bench) == both(0, 40)
    put_rows(trial, 2, 21, 30, shift_ms=77_777)  # cut off, resumed, and not as far as before
    exporter.sync_once()
    bench.exporter().sync_once()
    put_rows(trial, 2, 31, 60, shift_ms=77_777)
    finish_trial(trial, attempt=2)
    bench.exporter().sync_once()
    assert images(bench) == both(0, 40, 60)


def test_a_server_that_was_away_gets_the_last_images_later(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    trial = bench.begin()
    put_rows(trial, 1, 0, 40)
    finish_trial(trial)
    exporter = bench.exporter()

    def away(self: Tracking, *_: Any) -> None:
        raise ServerAwayError("timed out")

    with monkeypatch.context() as patched:
        for name in ("send_image", "send_tags"):
            patched.setattr(Tracking, name, away)
        assert exporter.sync_once().away == "timed out"
    exporter.sync_once()
    assert images(bench) == both(0, 40)


def test_a_failed_trial_shows_its_last_snapshot_at_once(bench: Bench) -> None:
    trial = bench.begin()
    put_rows(trial, 1, 0, 20)
    exporter = bench.exporter()
    exporter.sync_once()
    put_rows(trial, 1, 21, 40)
    give_up(trial)
    exporter.sync_once()
    assert images(bench) == both(0, 20, 40)


def test_every_site_has_its_own_images_as_large_as_they_were_drawn(
    tmp_path: Path, template: Path, plain_environment: None
) -> None:
    bench = Bench(tmp_path, template)
    trial = bench.begin()
    rows = rows_of(0, 0)
    pre = [row | {"site": "pre"} for row in rows["spectra"]]
    bench.put("spectra", trial, rows["spectra"] + pre)
    bench.exporter().sync_once()
    assert {key for key, _ in images(bench)} == {
        f"spectra/{site}/{name}" for site in ("pre", "post") for name in ("heat_map", "spectrum")
    }
    stored = list((tmp_path / "mlartifacts").rglob("images/*.png"))
    assert {imread(path).shape[:2] for path in stored} == {(666, 666)}


@pytest.mark.parametrize("error", [ModuleNotFoundError("PIL"), TypeError("key"), OSError("full")])
def test_images_that_cannot_be_stored_do_not_hold_up_the_numbers_or_files(
    bench: Bench,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    error: Exception,
) -> None:
    def broken(self: Tracking, run_id: str, image: Any) -> None:
        raise error

    monkeypatch.setattr(Tracking, "send_image", broken)
    trial = bench.begin()
    put_rows(trial, 1, 0, 40)
    finish_trial(trial)
    assert bench.exporter().finish().refused == 0
    assert bench.points() == expected(rows_of(0, 40))
    assert bench.child().info.status == "FINISHED"
    run = bench.child().info.run_id
    assert {file.path for file in bench.client.list_artifacts(run)} == {RESULT, "spec.json"}
    assert len([r for r in caplog.records if "images are not sent" in r.getMessage()]) == 1


def test_a_snapshot_that_cannot_be_drawn_is_told_of_and_its_numbers_are_sent(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    rows = rows_of(0, 0)
    broken = [row | {"eigenvalues": [math.nan] * 4} for row in rows["spectra"]]
    bench.put("spectra", bench.begin(), broken)
    assert bench.exporter().sync_once().refused == 0
    assert bench.points() == expected({"metrics": [], "spectra": rows["spectra"]})
    assert any("not finite" in record.getMessage() for record in caplog.records)


def test_a_store_that_failed_is_left_alone_for_a_while_and_tried_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    calls = []

    class Broken:
        def send_image(self, run_id: str, image: str) -> None:
            calls.append(image)
            if len(calls) < 3:
                raise OSError("timed out")

    clock: Any = Clock()
    artifacts = Artifacts(Broken(), clock)
    assert not artifacts.send_image("run", "first")
    assert not artifacts.takes_images
    clock.now += PAUSE_S - 1
    assert not artifacts.send_image("run", "in the pause")
    clock.now += 1
    assert not artifacts.send_image("run", "second")
    clock.now += PAUSE_S
    assert artifacts.takes_images
    assert artifacts.send_image("run", "third")
    assert calls == ["first", "second", "third"]
    assert len(caplog.records) == 1


# --- when they are drawn -------------------------------------------------------------------


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


class Store:
    """Takes every image, and has none of its own."""

    takes_images = True

    def __init__(self) -> None:
        self.steps: list[int] = []

    def image_steps(self, run_id: str) -> dict[str, int]:
        return {}

    def send_image(self, run_id: str, image: Any) -> bool:
        if image.key == HEAT_MAP:
            self.steps.append(image.step)
        return True


def test_a_long_trial_has_a_bounded_number_of_images(bench: Bench, no_rest: None) -> None:
    trial, store = bench.begin(), Store()
    shown = TrialImages("run", known=False, steps=2000)
    parts: list[str] = []
    for step in range(0, 2000, 5):
        row = rows_of(0, 0)["spectra"][0] | {"step": step}
        parts.append(bench.put("spectra", trial, [row]))
        seen = TrialView("running", tuple(parts[-1:]), None, None)
        if shown.due(seen):
            shown.update(trial, seen, store)
    assert store.steps == list(range(0, 2000, 20))


def test_images_of_a_running_trial_are_a_minute_apart(bench: Bench) -> None:
    trial, store, clock = bench.begin(), Store(), Clock()
    shown = TrialImages("run", known=False, steps=40, clock=clock)
    for step in range(12):
        clock.now += 10
        row = rows_of(0, 0)["spectra"][0] | {"step": step}
        seen = TrialView("running", (bench.put("spectra", trial, [row]),), None, None)
        if shown.due(seen):
            shown.update(trial, seen, store)
    assert store.steps == [0, 6]


def test_only_new_parts_are_read(
    bench: Bench, no_rest: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    plain = exporter_images.read_part
    monkeypatch.setattr(
        exporter_images,
        "read_part",
        lambda trial, key, c: (read.append(key), plain(trial, key, c))[1],
    )
    trial, shown = bench.begin(), TrialImages("run", known=False, steps=40)
    parts: list[str] = []
    for step in (0, 20, 40):
        parts.append(bench.put("spectra", trial, rows_of(step, step)["spectra"]))
        shown.update(trial, TrialView("running", tuple(parts), None, None), Store())
    assert read == parts


def test_a_look_draws_for_its_time_and_at_least_once() -> None:
    clock = Clock()
    drawing = DrawingTime(5.0, clock)
    clock.now += 4
    assert drawing.take()
    clock.now += 4
    assert not drawing.take()
    clock.now += 100
    assert DrawingTime(0.0, clock).take()


def test_trials_that_end_together_are_ended_over_several_looks_with_their_images(
    tmp_path: Path, template: Path, plain_environment: None, undrawn: None
) -> None:
    from orchestrator.mlflow.export_sweep import Exporter

    bench = Bench(tmp_path, template, trials=3)
    for number in range(3):
        trial = bench.begin(number)
        put_rows(trial, 1, 0, 20)
        finish_trial(trial)
    exporter = Exporter(bench.sweep, bench.uri, drawing_s=0.0)
    ended = []
    for _ in range(3):
        exporter.sync_once()
        ended.append(sum(run.info.status == "FINISHED" for run in bench.runs()))
        assert all(bench.points(n) == expected(rows_of(0, 20)) for n in range(3))
    assert ended == [1, 2, 3]
    assert all(images(bench, number) == both(0, 20) for number in range(3))
