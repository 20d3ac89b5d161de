"""Bad input ends in exit code 2 and one message, with nothing left behind; --json is only JSON."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from repository import TINY

from orchestrator.cli import __main__ as cli
from trialstore.records import encode_json
from trialstore.storage import LocalStorage


@pytest.fixture
def tiny() -> dict:
    return yaml.safe_load((TINY).read_text())


class Command:
    """`widthlab run` of a sweep in a storage of its own."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
        self.folder, self.storage = folder, folder / "storage"
        self._monkeypatch, self._capsys = monkeypatch, capsys

    def run(self, sweep: str | dict, *arguments: str, storage: Path | None = None) -> str:
        """Refused: the one message, after checking that it is all there is."""
        path = self.folder / "sweep.yaml"
        path.write_text(sweep if isinstance(sweep, str) else yaml.safe_dump(sweep))
        return self.refused(
            ["run", str(path), "--storage", str(storage or self.storage), *arguments]
        )

    def refused(self, arguments: list[str]) -> str:
        self._monkeypatch.setattr(sys, "argv", ["widthlab", *arguments])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        output = self._capsys.readouterr()
        assert stopped.value.code == 2, output.err
        assert output.out == ""
        assert "Traceback" not in output.err
        assert output.err.count("error: ") == 1
        assert not self.storage.exists() or not any(self.storage.rglob("*"))
        return output.err


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> Command:
    # Nothing that is refused may get as far as Ray.
    monkeypatch.setitem(sys.modules, "ray", None)
    return Command(tmp_path, monkeypatch, capsys)


def test_a_second_interrupt_says_that_nothing_is_lost(
    command: Command, tiny: dict, monkeypatch: pytest.MonkeyPatch, capsys
):
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("orchestrator.run.run_sweep", interrupted)
    (command.folder / "sweep.yaml").write_text(yaml.safe_dump(tiny))
    monkeypatch.setattr(
        sys, "argv", ["widthlab", "run", str(command.folder / "sweep.yaml"), "--storage", "s"]
    )
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == 130
    assert "same command" in capsys.readouterr().err


def test_a_missing_file(command: Command):
    missing = str(command.folder / "no.yaml")
    assert missing in command.refused(["run", missing, "--storage", str(command.storage)])


def test_broken_yaml_is_located(command: Command):
    assert "line 3" in command.run("name: x\ngrid: [1, 2\n")


def test_an_unknown_key_names_the_nearest(command: Command, tiny: dict):
    tiny["training"]["learning_rat"] = 1e-3
    assert "learning_rate" in command.run(tiny)


def test_an_unknown_override_names_the_nearest(command: Command, tiny: dict):
    assert "steps" in command.run(tiny, "--set", "training.stepz=3")


def test_a_wrong_type_is_shown(command: Command, tiny: dict):
    tiny["training"]["steps"] = "many"
    message = command.run(tiny)
    assert "training.steps" in message
    assert "'many'" in message


@pytest.mark.parametrize("grid", [{}, {"width_multiplier": []}])
def test_an_empty_grid(command: Command, tiny: dict, grid: dict):
    tiny["grid"] = grid
    assert "grid" in command.run(tiny)


@pytest.mark.parametrize("grid", [{"ffn_width": [0]}, {"width_multiplier": [-1]}])
def test_a_width_below_one(command: Command, tiny: dict, grid: dict):
    tiny["grid"] = grid
    assert next(iter(grid)) in command.run(tiny)


def test_a_head_dim_that_does_not_divide_d_model(command: Command, tiny: dict):
    tiny["model"]["head_dim"] = 12
    message = command.run(tiny)
    assert "12" in message
    assert "32" in message


def test_an_empty_corpus(command: Command, tiny: dict):
    (command.folder / "texts").mkdir()
    tiny["corpus"] = {"kind": "text", "paths": [str(command.folder / "texts")]}
    assert "texts" in command.run(tiny)


def test_a_corpus_too_short_for_the_evaluation(command: Command, tiny: dict):
    path = command.folder / "short.txt"
    path.write_text("\n\n".join("a few words and no more" for _ in range(9)))
    tiny["corpus"] = {"kind": "text", "paths": [str(path)]}
    assert "held-out" in command.run(tiny)


def test_bytes_that_are_no_text(command: Command, tiny: dict):
    path = command.folder / "broken.txt"
    path.write_bytes(b"text \xff\xfe")
    tiny["corpus"] = {"kind": "text", "paths": [str(path)]}
    assert str(path) in command.run(tiny)


def test_an_unknown_tokenizer(command: Command, tiny: dict):
    tiny["tokenizer"] = {"kind": "bpee"}
    assert "bpe" in command.run(tiny)
    tiny["tokenizer"] = {"kind": "pretrained", "path": str(command.folder / "nowhere")}
    assert "nowhere" in command.run(tiny)


def test_a_storage_that_cannot_be_written(command: Command, tiny: dict):
    blocked = command.folder / "a-file"
    blocked.write_text("in the way")
    assert "a-file" in command.run(tiny, storage=blocked / "storage")
    assert blocked.read_text() == "in the way"


def test_a_trial_that_can_never_fit_this_machine(command: Command, tiny: dict):
    tiny["resources"] = {"workers": 1, "cpus_per_worker": 4096}
    message = command.run(tiny)
    assert "4096 CPU" in message
    assert "room for 0" in message


def test_a_ray_address_where_nobody_listens(command: Command, tiny: dict):
    assert "127.0.0.1:1" in command.run(tiny, "--address", "127.0.0.1:1")


def test_a_tracking_uri_of_no_server(command: Command, tiny: dict):
    assert "ftp://nowhere" in command.run(tiny, "--tracking-uri", "ftp://nowhere")


@pytest.mark.parametrize("name", ["status", "stop", "sync", "analyze"])
def test_a_folder_that_is_no_sweep(command: Command, name: str):
    assert str(command.folder) in command.refused([name, str(command.folder)])


def test_status_marks_a_trial_whose_layers_have_collapsed_and_cuts_no_id_short(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
):
    monkeypatch.setenv("COLUMNS", "40")
    sweep, trial_id = LocalStorage(tmp_path), "0123456789ab"
    axes = {"architecture": "gpt2", "norm": "pre", "depth": 2, "d_model": 64, "D": 256, "seed": 0}
    cells = [{"id": trial_id, "axes": axes}]
    content = {"name": "s", "training": {"steps": 90}, "resolved": {"trials": cells}}
    sweep.put("sweep.yaml", encode_json(content))
    lease = {"attempt": 1, "step": 50, "steps": 90, "loss": 5.4}
    sweep.put(f"trials/{trial_id}/lease.json", encode_json({**lease, "heartbeat_ms": 0}))
    sweep.put(f"trials/{trial_id}/collapse.json", encode_json({"step": 40, "reason": "rank"}))
    cli.app(["status", str(tmp_path)], standalone_mode=False)
    (line,) = [line for line in capsys.readouterr().out.splitlines() if trial_id in line]
    assert line.split("  ")[:3] == [
        trial_id, "gpt2 pre L2 d64 D256 seed 0", "stale, collapsed since 40",
    ]  # fmt: skip
    cli.app(["status", str(tmp_path), "--json"], standalone_mode=False)
    told = json.loads(capsys.readouterr().out)
    assert told["trials"][0]["collapsed_since"] == 40
    assert told["counts"]["collapsed"] == 0


@pytest.mark.processes
def test_plan_prints_one_json_object(tmp_path: Path):
    done = subprocess.run(
        [sys.executable, "-m", "orchestrator.cli", "plan", str(TINY), "--json"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    plan = json.loads(done.stdout)
    assert {"sweep", "trials", "dropped", "totals"} <= set(plan)
    assert len(plan["trials"]) == 3


@pytest.mark.processes
def test_help_loads_nothing_heavy():
    probe = (
        "import sys; from orchestrator.cli import __main__ as cli\n"
        "sys.argv = ['widthlab', '--help']\n"
        "try: cli.main()\n"
        "except SystemExit: pass\n"
        "print(sorted({'ray', 'torch', 'mlflow', 'transformers', 'pandas'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
