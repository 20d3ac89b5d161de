"""What `widthlab gc` finds and removes, and what it never touches."""

import json
import os
import sys
from pathlib import Path

import pytest
from exporter_bench import Bench, checkpoint, finish_trial, put_rows

from orchestrator.cli import __main__ as cli
from orchestrator.ledger.removal import CUT_OFF_S, unneeded
from trialstore import driver_lease, records
from trialstore.records import attempt_folder, manifest_key
from trialstore.storage import LocalStorage


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    (tmp_path / "none.db").touch()
    return Bench(tmp_path, tmp_path / "none.db", trials=2)


def train(bench: Bench, number: int, *checkpoints: int) -> LocalStorage:
    trial = bench.begin(number)
    put_rows(trial, 1, 0, 40)
    for step in checkpoints:
        trial.put(f"{attempt_folder(step, 1)}/weights", b"w" * 1000)
        checkpoint(trial, step, 1)
    return trial


def found(bench: Bench, final: bool = False) -> list[set[str]]:
    return [set(kind.sizes) for kind in unneeded(bench.sweep, final)]


def test_a_trial_that_ended_in_order_has_nothing_to_spare(bench: Bench) -> None:
    for number in range(2):
        finish_trial(train(bench, number, 40))
    assert found(bench) == [set(), set()]


def test_what_a_trial_that_was_killed_while_it_tidied_up_has_left_may_go(bench: Bench) -> None:
    for number in range(2):
        finish_trial(train(bench, number, 20, 40))
    trial = bench.sweep.child(f"trials/{bench.ids[0]}")
    old = set(trial.list("checkpoints/step-00000020"))
    put_rows(trial, 1, 0, 20)  # parts that were compacted
    trial.put(f"{attempt_folder(30, 1)}/weights", b"never committed")
    parts = set(trial.list(records.METRICS)) | set(trial.list(records.SPECTRA))
    result = records.get_result(trial)
    assert result
    spare = parts - set(result["records"].values())
    assert len(spare) == 2
    of_trial = spare | old | {f"{attempt_folder(30, 1)}/weights"}
    _, superseded = unneeded(bench.sweep)
    first = {f"trials/{bench.ids[0]}/{key}" for key in of_trial}
    second = {f"trials/{bench.ids[1]}/{key}" for key in old}
    assert set(superseded.sizes) == first | second
    assert superseded.nbytes == sum(len(bench.sweep.get(key)) for key in first | second)
    # Whoever is killed here too leaves no checkpoint that seems whole.
    order = list(superseded.sizes)
    manifest, weights = (
        order.index(f"trials/{bench.ids[0]}/{key}")
        for key in (manifest_key(20), f"{attempt_folder(20, 1)}/weights")
    )
    assert manifest < weights
    before = {key: bench.sweep.get(key) for key in bench.sweep.list()}
    superseded.remove(bench.sweep)
    assert {key: bench.sweep.get(key) for key in bench.sweep.list()} == {
        key: data for key, data in before.items() if key not in first | second
    }
    assert records.read_records(trial, records.METRICS).num_rows == 43
    assert found(bench) == [set(), set()]


def test_while_trials_are_to_come_every_checkpoint_that_they_may_branch_from_is_kept(
    bench: Bench,
) -> None:
    finish_trial(train(bench, 0, 20, 40))
    train(bench, 1, 20)
    assert found(bench) == [set(), set()]
    _, superseded, last = unneeded(bench.sweep, final=True)
    assert not superseded.sizes
    assert {key.split("/")[1] for key in last.sizes} == {bench.ids[0]}


def test_nothing_of_a_trial_that_is_not_finished_may_go(bench: Bench) -> None:
    for number in range(2):
        train(bench, number, 20, 40)
    assert found(bench, final=True) == [set(), set(), set()]


def test_last_checkpoints_go_only_when_asked_for(bench: Bench) -> None:
    for number in range(2):
        finish_trial(train(bench, number, 40))
    assert found(bench) == [set(), set()]
    wanted = {
        f"trials/{trial_id}/{key}"
        for trial_id in bench.ids
        for key in (manifest_key(40), f"{attempt_folder(40, 1)}/weights")
    }
    assert found(bench, final=True)[2] == wanted


def test_what_was_cut_off_an_hour_ago_may_go_and_what_is_being_written_may_not(
    bench: Bench,
) -> None:
    trial = train(bench, 0, 20)
    folder = trial.path(attempt_folder(20, 1))
    (folder / ".weights.abcd_123").write_bytes(b"half")
    (folder / ".weights.abcd_124").write_bytes(b"a half that grows")
    (folder / ".nfs0000").write_bytes(b"the file system's own")
    ago = (folder / ".weights.abcd_123").stat().st_mtime - CUT_OFF_S - 1
    for name in (".weights.abcd_123", ".nfs0000"):
        os.utime(folder / name, (ago, ago))
    (unfinished, _) = unneeded(bench.sweep)
    key = f"trials/{bench.ids[0]}/{attempt_folder(20, 1)}/.weights.abcd_123"
    assert unfinished.sizes == {key: 4}
    unfinished.remove(bench.sweep)
    assert sorted(path.name for path in folder.iterdir()) == [
        ".nfs0000", ".weights.abcd_124", "weights",
    ]  # fmt: skip


# --- the command ---------------------------------------------------------------------------


def gc(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["widthlab", "gc", *arguments])
    cli.main()


def test_the_command_lists_and_removes_only_when_told(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(2):
        finish_trial(train(bench, number, 20, 40))
    before = bench.sweep.list()
    with pytest.raises(SystemExit) as ended:
        gc(monkeypatch, bench.sweep.url)
    assert ended.value.code == 0
    assert "nothing was removed" in capsys.readouterr().out
    assert bench.sweep.list() == before
    with pytest.raises(SystemExit) as ended:
        gc(monkeypatch, bench.sweep.url, "--remove", "--json")
    assert ended.value.code == 0
    told = json.loads(capsys.readouterr().out)
    gone = {key for kind in told["kinds"] for key in kind["objects"]}
    assert told["removed"] is True
    assert gone == set(before) - set(bench.sweep.list())
    assert len(gone) == 4


def test_a_sweep_that_runs_is_left_alone(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    finish_trial(train(bench, 0, 20, 40))
    before = bench.sweep.list()
    monkeypatch.setattr(driver_lease, "is_driven", lambda sweep: True)
    with pytest.raises(SystemExit) as ended:
        gc(monkeypatch, bench.sweep.url, "--final", "--remove")
    assert ended.value.code == 2
    assert "is running" in capsys.readouterr().err
    assert bench.sweep.list() == before
