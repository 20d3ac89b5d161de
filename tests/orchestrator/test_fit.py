"""Claims about `widthlab fit`: published objectives, one clear message, only JSON on stdout."""

import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from messages import mentions
from repository import DATA

from orchestrator.cli import __main__ as cli

GADRE = DATA / "gadre_models_losses.csv"
LOSSES = ["--law", "chinchilla", "--params", "params", "--tokens", "tokens", "--loss", "loss"]
POWER = ["--law", "power", "--x", "D", "--y", "rank"]
#: Objectives published for these data, and the exponents beside them (arXiv 2403.08540's models,
#: fitted as in arXiv 2203.15556).
PUBLISHED = {
    "c4_original": (5.2995e-4, 0.2526, 0.2622),
    "rpj": (4.2651e-4, 0.2431, 0.2730),
    "rw_original": (4.7573e-4, 0.2226, 0.2898),
}


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys):
    """Runs `widthlab fit` and returns exit code, stdout and stderr."""

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["widthlab", "fit", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        output = capsys.readouterr()
        return int(stopped.value.code or 0), output.out, output.err

    return call


@pytest.fixture
def ranks(tmp_path: Path) -> Path:
    width = np.repeat([64, 96, 128, 192, 256], 2)
    table = pd.DataFrame({"D": width, "rank": 3 * width**0.7, "norm": ["pre", "post"] * 5})
    table.to_csv(tmp_path / "ranks.csv", index=False)
    return tmp_path / "ranks.csv"


@pytest.mark.slow
def test_published_objectives_are_reached_from_the_command_line(run) -> None:
    code, out, _ = run(
        GADRE, *LOSSES, "--where", "val_data=c4_val", "--group", "dataset", "--json",
        "--bootstrap", "100",
    )  # fmt: skip
    assert code == 0
    found = json.loads(out)
    assert found["law"] == "chinchilla"
    assert [group["group"]["dataset"] for group in found["groups"]] == list(PUBLISHED)
    for group in found["groups"]:
        objective, alpha, beta = PUBLISHED[group["group"]["dataset"]]
        assert group["objective"] <= objective + 0.5e-8  # published to five digits
        assert group["parameters"]["alpha"] == pytest.approx(alpha, abs=1e-3)
        assert group["parameters"]["beta"] == pytest.approx(beta, abs=1e-3)
        assert group["starts"] == 4500
        assert group["starts_at_best"] > 0.4
        low, high = group["identifiability"]["ranges"]["E"]
        assert high - low > 0.1  # the valley is flat
        assert group["intervals"]["allocation_exponent"][0] < group["allocation_exponent"]


@pytest.mark.parametrize("kind", ["csv", "tsv", "parquet"])
def test_every_kind_of_table_is_read_alike(run, ranks: Path, kind: str) -> None:
    frame, path = pd.read_csv(ranks), ranks.with_suffix(f".{kind}")
    if kind == "parquet":
        frame.to_parquet(path)
    else:
        frame.to_csv(path, sep="\t" if kind == "tsv" else ",", index=False)
    code, out, err = run(path, *POWER, "--json")
    assert (code, err) == (0, "")
    (group,) = json.loads(out)["groups"]
    assert group["parameters"]["beta"] == pytest.approx(0.7)


@pytest.mark.parametrize("suffix", [".svg", ".png"])
def test_a_figure_is_written(run, ranks: Path, suffix: str) -> None:
    figure = ranks.parent / f"law{suffix}"
    assert run(ranks, *POWER, "--group", "norm", "--figure", figure)[0] == 0
    assert figure.read_bytes()[:5] in (b"<?xml", b"\x89PNG\r")


def test_a_figure_of_a_loss_law_is_written(run, tmp_path: Path) -> None:
    figure = tmp_path / "law.svg"
    code, out, _ = run(
        GADRE, "--law", "kaplan", "--params", "params", "--tokens", "tokens", "--loss", "loss",
        "--where", "dataset=rpj", "--bootstrap", "100", "--figure", figure,
    )  # fmt: skip
    assert code == 0
    assert "Residuals" in figure.read_text()
    assert "alpha_N" in out
    assert "BCa" in out


def test_the_text_says_what_was_left_out_and_warns(run, ranks: Path) -> None:
    ranks.write_text(ranks.read_text() + "512,nan,pre\n")
    code, out, _ = run(ranks, "--law", "saturating", "--x", "D", "--y", "rank")
    assert code == 0
    assert mentions(out, "1 left out ... 1 not finite")
    assert "warning: " in out


BROKEN = {
    "empty.csv": (b"", "empty"),
    "twice.csv": (b"D,rank,D\n1,2,3\n", "'D' more than once"),
    "header.csv": (b"D,rank\n", "no rows"),
    "text.csv": (b"D,rank\n64,high\n", "'high'"),
    "column.csv": (b"D,loss\n64,3\n", "'rank'"),
    "ragged.csv": (b"D,rank\n64,3\n96,4,5\n", "not a table"),
    "more.csv": (b"D,rank\n64,3,1\n96,4,5\n", "more fields"),
    "binary.csv": (b"\xff\xfe\x00\x01\xc3\x28", "not a table"),
    "nul.csv": (b"\x00\x00\x00", "no column"),
    "broken.parquet": (b"PAR1 but no more", "not a table"),
    "notes.txt": (b"D,rank\n64,3\n", ".csv, .tsv or .parquet"),
    "few.csv": (b"D,rank\n64,3\n96,4\n", "at least 3"),
    "nan.csv": (b"D,rank\n64,nan\n96,nan\n128,nan\n", "empty in every row"),
    "zero.csv": (b"D,rank\n64,0\n96,-4\n128,0\n", "3 not positive"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_no_table_is_refused_with_one_message(run, tmp_path: Path, name: str) -> None:
    content, expected = BROKEN[name]
    (tmp_path / name).write_bytes(content)
    code, out, err = run(tmp_path / name, *POWER, "--json")
    assert (code, out) == (2, "")
    assert expected in err
    assert err.count("error: ") == 1
    assert "Traceback" not in err


def test_a_directory_a_missing_file_and_bad_options_are_refused(run, ranks: Path) -> None:
    for arguments, expected in (
        ([ranks.parent, *POWER], "directory"),
        ([ranks.parent / "no.csv", *POWER], "no.csv"),
        ([ranks, *POWER, "--where", "norm"], "column=value"),
        ([ranks, *POWER, "--figure", "law.gif"], ".svg"),
        ([ranks, *POWER, "--figure", ranks.parent / "no" / "law.svg"], "no directory"),
        ([ranks, *POWER[:-2]], "--y"),
    ):
        code, out, err = run(*arguments)
        assert (code, out) == (2, "")
        assert expected in err


def test_a_file_with_other_separators_says_so(run, tmp_path: Path) -> None:
    file = tmp_path / "ranks.csv"
    for separator, name in ((";", "semicolons"), ("\t", "tabs")):
        file.write_text(f"D{separator}rank\n64{separator}3\n")
        code, _, err = run(file, *POWER)
        assert code == 2
        assert name in err


def test_a_column_that_pandas_kept_as_the_index_of_a_parquet_file_is_found(
    run, tmp_path: Path
) -> None:
    width = np.array([64, 96, 128, 192, 256])
    pd.DataFrame({"rank": 3 * width**0.7}, pd.Index(width, name="D")).to_parquet(
        tmp_path / "ranks.parquet"
    )
    code, out, _ = run(tmp_path / "ranks.parquet", *POWER, "--json")
    assert code == 0
    assert json.loads(out)["groups"][0]["parameters"]["beta"] == pytest.approx(0.7)


# --- semantics versions --------------------------------------------------------------------


@pytest.fixture
def versions(ranks: Path, tmp_path: Path) -> Path:
    """Two tables of trials one after the other: the older one had no column of versions."""
    old = pd.read_csv(ranks)
    new = old.assign(rank=2 * old["D"] ** 0.5, semantics_version=2)
    pd.concat([old, new]).to_csv(tmp_path / "both.csv", index=False)
    return tmp_path / "both.csv"


def test_rows_of_two_semantics_versions_are_refused_with_counts_and_the_way_out(
    run, versions
) -> None:
    code, out, err = run(versions, *POWER)
    assert (code, out) == (2, "")
    (line,) = err.splitlines()
    assert mentions(line, "10 rows ... version 1 ... 10 rows ... version 2")
    assert "--where semantics_version=VERSION" in line
    code, _, err = run(versions, *POWER, "--group", "norm")
    assert code == 2
    assert mentions(err, "group post ... 5 rows ... version 1 ... 5 rows ... version 2")


def test_one_version_is_fitted_alone_or_each_as_a_group(run, versions) -> None:
    for version, slope in ((1, 0.7), (2, 0.5)):
        where = f"semantics_version={version}"
        code, out, _ = run(versions, *POWER, "--where", where, "--json")
        assert code == 0
        (found,) = json.loads(out)["groups"]
        assert found["parameters"]["beta"] == pytest.approx(slope)
    code, out, _ = run(versions, *POWER, "--group", "semantics_version", "--json")
    assert code == 0
    slopes = [group["parameters"]["beta"] for group in json.loads(out)["groups"]]
    assert sorted(slopes) == pytest.approx([0.5, 0.7])


def test_a_row_that_enters_no_law_mixes_nothing(run, versions, tmp_path) -> None:
    table = pd.read_csv(versions)
    table.loc[table["semantics_version"].isna(), "rank"] = np.nan
    table.to_csv(tmp_path / "emptied.csv", index=False)
    code, out, _ = run(tmp_path / "emptied.csv", *POWER, "--json")
    assert code == 0
    assert json.loads(out)["groups"][0]["n"] == 10
