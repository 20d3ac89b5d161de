"""A sweep's directory that somebody else has written to ends no command with a traceback."""

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from exporter_bench import START_MS, Bench, checkpoint, finish_trial, give_up, put_rows, spec
from hostile import alias_bomb, as_yaml, mutated_json, mutated_text, mutated_tree
from hostile_command import disarm, trainers, widthlab
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from trialstore import records
from trialstore.records import encode_json

TRIALS = 6
#: The commands that read a sweep's directory, with what each needs beside it.
COMMANDS = {
    "status": [],
    "sync": ["--tracking-uri", "http://127.0.0.1:1"],
    "analyze": [],
    "stop": [],
    "gc": ["--final"],
    "rerun": ["zz", "--tracking-uri", "http://127.0.0.1:1"],
}
quiet = settings(deadline=None, suppress_health_check=list(HealthCheck))


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    """Four trials that are done, one that runs and one that has failed; nothing is drawn."""
    root = tmp_path_factory.mktemp("directories")
    (root / "none.db").touch()
    bench = Bench(root, root / "none.db", TRIALS)
    cells = [plant(bench, number) for number in range(TRIALS)]
    content = yaml.safe_load(bench.sweep.get("sweep.yaml"))
    content |= {"model": {"d_model": 64}, "resolved": {"trials": cells}}
    bench.sweep.put("sweep.yaml", as_yaml(content))
    bench.sweep.put("mirror.json", encode_json({"identity": "small-1"}))
    driver = {"host": "h", "pid": 1, "started": 1.0, "heartbeat_ms": START_MS}
    bench.sweep.put(f"drivers/000001-{'a' * 32}.json", encode_json({**driver, "state": "released"}))
    with pytest.MonkeyPatch.context() as patched:
        disarm(patched, server=True)
        drawn = {"svg": b"<svg/>", "png": b""}
        patched.setattr("analysis.pipeline.render", lambda figure: drawn)
        patched.setattr("trialstore.driver_lease.LISTEN_S", 0.0)
        patched.setattr("orchestrator.mlflow.trial_run.TrialImages.due", lambda self, seen: False)
        logging.disable(logging.CRITICAL)
        yield bench
        logging.disable(logging.NOTSET)


def plant(bench: Bench, number: int) -> dict[str, Any]:
    """A trial of one width, and its cell."""
    trial_id, width = bench.ids[number], 64 * (number + 1)
    trial = bench.begin(number)
    about = spec(trial_id)
    about["model"] |= {"ffn_widths": [width, width]}
    trial.put(records.SPEC, encode_json(about))
    put_rows(trial, 1, 0, 20)
    if number < TRIALS - 2:
        put_rows(trial, 1, 21, 40)
        finish_trial(trial)
    elif number < TRIALS - 1:
        checkpoint(trial, 20, 1)
        put_rows(trial, 1, 21, 30)
        lease = {"attempt": 1, "owner": "x", "step": 30, "steps": 40, "loss": 3.0}
        trial.put(records.LEASE, encode_json({**lease, "heartbeat_ms": START_MS}))
        trial.put(records.COLLAPSE, encode_json({"step": 20, "reason": "rank"}))
    else:
        give_up(trial)
    axes = {"architecture": "gpt2", "norm": "pre", "width_multiplier": width / 64, "seed": 0}
    parameters = {"total": 9999, "ffn": 128 * width, "non_embedding": 32768 + 128 * width}
    shape = {"depth": 2, "d_model": 64, "D": width}
    return {"id": trial_id, "holds": ["none"], "axes": axes | shape, "parameters": parameters}


def objects(bench: Bench) -> list[str]:
    """What is worth spoiling: of every kind of trial one, and what lies beside them."""
    some = {bench.ids[number] for number in (0, TRIALS - 2, TRIALS - 1)}
    return [
        key
        for key in bench.sweep.list()
        if not key.startswith(("report/", "trials/")) or key.split("/")[1] in some
    ]


def spoilt(key: str, data: bytes) -> st.SearchStrategy[bytes]:
    if key.endswith(".json"):
        return mutated_json(data)
    if key.endswith(".yaml"):
        return mutated_tree(yaml.safe_load(data)).map(as_yaml) | mutated_text(data)
    return mutated_text(data) | st.binary(max_size=20)


def survive(bench: Bench, data: st.DataObject, commands: list[str]) -> None:
    """Spoil one object, call one command, and put the object back."""
    key = data.draw(st.sampled_from(objects(bench)))
    name = data.draw(st.sampled_from(commands))
    whole = bench.sweep.get(key)
    bench.sweep.put(key, data.draw(spoilt(key, whole)))
    try:
        widthlab(name, bench.sweep.url, *COMMANDS[name])
    finally:
        bench.sweep.put(key, whole)


@pytest.mark.long
def test_the_sweep_is_whole_before_it_is_spoilt(sweep: Bench) -> None:
    assert widthlab("status", sweep.sweep.url, "--json").code == 0
    assert widthlab("sync", sweep.sweep.url, *COMMANDS["sync"]).code == 0
    assert widthlab("analyze", sweep.sweep.url).code == 0


@settings(quiet, max_examples=25)
@given(data=st.data())
@pytest.mark.long
def test_a_spoilt_object_is_told_of(sweep: Bench, data: st.DataObject) -> None:
    survive(sweep, data, ["status", "sync", "stop", "rerun", "gc"])


@pytest.mark.long
@settings(quiet, max_examples=5)
@given(data=st.data())
def test_a_spoilt_object_is_left_out_of_the_analysis(sweep: Bench, data: st.DataObject) -> None:
    survive(sweep, data, ["analyze"])


@pytest.mark.slow
@settings(quiet, max_examples=2000)
@given(data=st.data())
def test_thousands_of_spoilt_objects_are_told_of(sweep: Bench, data: st.DataObject) -> None:
    survive(sweep, data, sorted(COMMANDS))


@pytest.mark.parametrize(
    "make",
    [
        lambda: b"[" * 200_000,
        lambda: b"a: " * 5000,
        lambda: b"resolved:\n  trials: &t [*t]",
        lambda: alias_bomb(9) + b"name: x\ntraining: {}\nresolved: {trials: *a8}",
        lambda: b"a: 2020-13-45",
        lambda: b"a: !!bool x",
        lambda: b"a: !!python/object/apply:os.system [id]",
    ],
    ids=["brackets", "keys", "itself", "laughs", "no date", "no bool", "a constructor"],
)
def test_a_resolved_file_made_to_exhaust_or_to_run_something_is_bad_input(
    tmp_path: Path, make: Callable[[], bytes]
) -> None:
    (tmp_path / "sweep.yaml").write_bytes(make())
    for name in ("status", "sync", "analyze"):
        ended = widthlab(name, str(tmp_path), *COMMANDS[name])
        assert ended.code == 2
        assert "sweep.yaml" in ended.errors


@settings(quiet, max_examples=15)
@given(data=st.data())
def test_a_spoilt_trial_is_never_trained_again_by_itself(sweep: Bench, data: st.DataObject) -> None:
    trial = f"trials/{sweep.ids[0]}"
    key = data.draw(st.sampled_from([f"{trial}/spec.json", f"{trial}/result.json"]))
    whole = sweep.sweep.get(key)
    sweep.sweep.put(key, data.draw(mutated_json(whole)))
    try:
        where = sweep.sweep.child(trial)
        assert trainers(str(where.path("spec.json")), "--out", where.url).code == 2
    finally:
        sweep.sweep.put(key, whole)
