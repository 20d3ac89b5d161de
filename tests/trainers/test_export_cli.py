"""`widthlab export`: what it prints, and that it finds a user's block in the working directory."""

import json
import sys

import pytest
from messages import mentions
from own_ffn import CUBED
from transformers import AutoModelForCausalLM

from orchestrator.cli import __main__ as cli
from trainers import check_block
from trainers.train import train


@pytest.fixture
def export(monkeypatch, capsys):
    """Run the command; gives its exit code, stdout and stderr."""

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["widthlab", "export", *arguments])
        monkeypatch.setattr(sys, "path", list(sys.path))
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        output = capsys.readouterr()
        return stopped.value.code or 0, output.out, output.err

    return run


@pytest.fixture
def trained(make_spec, trial, diary) -> str:
    spec = make_spec(model__ffn_widths=[24, 24], training__steps=4)
    train(spec, trial, diary())
    return trial.url


@pytest.mark.long
def test_the_output_names_the_folder_and_how_to_load_it(export, trained, tmp_path) -> None:
    code, out, err = export(trained, "--out", str(tmp_path / "model"))
    assert code == 0, err
    assert f"wrote {tmp_path / 'model'}" in out
    assert "GPT2LMHeadModel" in out
    assert mentions(out, "completed ... 4 of 4 updates ... held-out loss")
    space: dict = {}
    exec("\n".join(out.splitlines()[-2:]), space)
    assert space["tokenizer"]("ten")["input_ids"] == list(b"ten")
    assert type(space["model"]).__name__ == "GPT2LMHeadModel"


@pytest.mark.long
def test_json_is_one_object_and_nothing_else(export, trained, tmp_path) -> None:
    code, out, _ = export(
        trained, "--out", str(tmp_path / "model"), "--json", "--dtype", "bfloat16", "--no-tokenizer"
    )
    told = json.loads(out)
    assert code == 0
    assert told["files"] == sorted(path.name for path in (tmp_path / "model").iterdir())
    assert {told[key] for key in ("trust_remote_code", "tokenizer")} == {False}
    assert (told["dtype"], told["step"], told["outcome"]) == ("bfloat16", 4, "completed")


@pytest.mark.long
def test_bad_input_is_one_message_and_exit_code_2(export, trained, tmp_path) -> None:
    for arguments in ((trained, str(tmp_path)), (str(tmp_path / "none"), str(tmp_path / "model"))):
        code, out, err = export(arguments[0], "--out", arguments[1])
        assert (code, out) == (2, "")
        assert err.count("error: ") == 1
        assert "Traceback" not in err


@pytest.mark.long
def test_a_block_is_found_in_the_working_directory_and_travels(
    export, make_spec, trial, diary, tmp_path, monkeypatch
) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "cubed_block.py").write_text(CUBED)
    with monkeypatch.context() as patch:
        patch.syspath_prepend(folder)
        block = check_block.resolve("cubed_block:Cubed")
        train(make_spec(model__block=block.model_dump(), training__steps=2), trial, diary())
    monkeypatch.delitem(sys.modules, "cubed_block")
    trusted = ("--block", "cubed_block:Cubed")
    code, _, err = export(trial.url, "--out", str(tmp_path / "model"), *trusted)
    assert code == 2
    assert "cubed_block" in err
    monkeypatch.chdir(folder)
    for untrusted in ((), ("--block", "cubed_block:Other")):
        code, _, err = export(trial.url, "--out", str(tmp_path / "model"), *untrusted)
        assert code == 2
        assert "--block cubed_block:Cubed" in err
    assert "cubed_block" not in sys.modules  # nothing of it has run
    code, out, err = export(trial.url, "--out", str(tmp_path / "model"), *trusted)
    assert code == 0, err
    assert "trust_remote_code=True" in out
    assert "class Cubed(nn.Module)" in (tmp_path / "model" / "block.py").read_text()
    with pytest.raises(ValueError, match="trust_remote_code=True"):
        AutoModelForCausalLM.from_pretrained(tmp_path / "model", trust_remote_code=False)
