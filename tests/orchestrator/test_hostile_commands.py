"""No command line, however it is put together, ends with a traceback."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import repository
from exporter_bench import spec
from hostile import SCALARS, mutated_json, mutated_text
from hostile_command import disarm, trainers, widthlab
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from trialstore.records import encode_json

TINY = str(repository.TINY)
TABLE = b"x,y,n,d,l,g\n" + b"".join(
    b"%d,%f,%d,%d,%f,%d\n" % (i, i**0.5 + 0.01 * (i % 3), 10 * i, 100 * i * i, 3 + 1 / i, i % 2)
    for i in range(1, 13)
)
NOBODY = "http://127.0.0.1:1"
BASE = {
    "plan": [TINY],
    "run": [TINY],
    "submit": [TINY, "--address", NOBODY],
    "status": [TINY],
    "stop": [TINY],
    "rerun": [TINY, "0a1b"],
    "gc": [TINY],
    "analyze": ["."],
    "fit": ["table.csv", "--law", "power", "--x", "x", "--y", "y"],
    "sync": ["."],
    "export": [".", "--out", "exported"],
    "ui": [],
}
FLAGS = (
    *("--json", "--retry-failed", "--require-verdict", "--from-mlflow", "--no-tokenizer"),
    *("--follow", "--final", "--remove"),
)
OPTIONS = {
    "plan": ["--set", "--storage", "--json"],
    "run": ["--set", "--storage", "--tracking-uri", "--address", "--retry-failed", "--json"],
    "submit": ["--set", "--storage", "--tracking-uri", "--address", "--retry-failed", "--json",
               "--require-verdict", "--follow", "--attach", "--stop"],
    "status": ["--set", "--storage", "--json"],
    "stop": ["--set", "--storage"],
    "rerun": ["--set", "--storage", "--tracking-uri"],
    "gc": ["--set", "--storage", "--final", "--remove", "--json"],
    "analyze": ["--from-mlflow", "--out", "--storage", "--tracking-uri", "--aggregate-last",
                "--aggregate-layers", "--require-verdict", "--json"],
    "fit": ["--law", "--x", "--y", "--params", "--tokens", "--width", "--depth", "--loss",
            "--replicate", "--where", "--group", "--bootstrap", "--seed", "--figure", "--json"],
    "sync": ["--tracking-uri", "--json"],
    "export": ["--out", "--dtype", "--no-tokenizer", "--json"],
    "ui": ["--storage", "--port"],
}  # fmt: skip
WORDS = [
    *(text for text in SCALARS if isinstance(text, str) and "\0" not in text),
    *("nan", "-1", "0", "3", "9" * 400, TINY, "table.csv", ".", "/dev/null", "x=", "=", "=1"),
    *("steps=3", "grid.width_multiplier=[1]", "name=x", "l>3", "g=1", "x", "y", "n", "power"),
    *("kaplan", "--", "--nothing", "-j", "sqlite:///", NOBODY, "[", "{", "*a"),
]

few = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
many = settings(max_examples=5000, deadline=None, suppress_health_check=list(HealthCheck))


@pytest.fixture(scope="module", autouse=True)
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where the commands are called; nothing behind them is there."""
    folder = tmp_path_factory.mktemp("commands")
    (folder / "table.csv").write_bytes(TABLE)
    with pytest.MonkeyPatch.context() as patched:
        disarm(patched)
        patched.chdir(folder)
        yield folder


@st.composite
def command_lines(draw: st.DrawFn) -> list[str]:
    """A command with some of its options, in which words stand that do not belong there."""
    word = st.sampled_from(WORDS) | st.text(max_size=12).map(lambda text: text.replace("\0", ""))
    name = draw(st.sampled_from(sorted(BASE)))
    line = [name, *(BASE[name] if draw(st.integers(0, 3)) else [draw(word) for _ in BASE[name]])]
    for _ in range(draw(st.integers(0, 3))):
        option = draw(st.sampled_from(OPTIONS[name]))
        line += [option] if option in FLAGS else [option, draw(word)]
    if not draw(st.integers(0, 5)):
        line.insert(draw(st.integers(0, len(line))), draw(word))
    return line


@few
@given(line=command_lines())
@pytest.mark.long
def test_a_spoilt_command_line_is_bad_input_or_another_command(line: list[str]) -> None:
    widthlab(*line)


@pytest.mark.slow
@many
@given(line=command_lines())
def test_thousands_of_spoilt_command_lines_are_bad_input_or_others(line: list[str]) -> None:
    widthlab(*line)


# --- tables --------------------------------------------------------------------------------

LAWS = [
    ["power", "--x", "x", "--y", "y"],
    ["power", "--x", "x", "--y", "y", "--replicate", "g"],
    ["saturating", "--x", "x", "--y", "y", "--group", "g"],
    ["kaplan", "--params", "n", "--tokens", "d", "--loss", "l"],
    ["chinchilla", "--params", "n", "--tokens", "d", "--loss", "l"],
    ["width-depth", "--width", "x", "--depth", "g", "--tokens", "d", "--loss", "l"],
]
CELLS = ["", "nan", "inf", "-inf", "1e400", "-1", "0", "1e-320", "1e308", "x", '"', "é", "9" * 400]


@st.composite
def tables(draw: st.DrawFn) -> bytes:
    """A table with cells that are no numbers, or hardly, with rows missing, or with lost bytes."""
    if draw(st.booleans()):
        return draw(mutated_text(TABLE))
    rows = [line.split(",") for line in TABLE.decode().splitlines()]
    for _ in range(draw(st.integers(1, 4))):
        row, column = draw(st.integers(0, len(rows) - 1)), draw(st.integers(0, 5))
        rows[row][column] = draw(st.sampled_from(CELLS) | st.floats().map(str))
    kept = draw(st.sampled_from([len(rows), len(rows), 1, 2, 4]))
    return "\n".join(map(",".join, rows[:kept])).encode()


def assert_fitted_or_refused(data: bytes, law: list[str], suffix: str) -> None:
    path = Path(f"spoilt{suffix}")
    path.write_bytes(data)
    widthlab("fit", str(path), "--law", *law, "--bootstrap", "0")


@settings(few, max_examples=20)
@given(data=tables(), law=st.sampled_from(LAWS), suffix=st.sampled_from([".csv", ".parquet"]))
@pytest.mark.long
def test_a_spoilt_table_is_fitted_or_refused(data: bytes, law: list[str], suffix: str) -> None:
    assert_fitted_or_refused(data, law, suffix)


@pytest.mark.slow
@settings(many, max_examples=2000)
@given(data=tables(), law=st.sampled_from(LAWS), suffix=st.sampled_from([".csv", ".parquet"]))
def test_thousands_of_spoilt_tables_are_fitted_or_refused(
    data: bytes, law: list[str], suffix: str
) -> None:
    assert_fitted_or_refused(data, law, suffix)


# --- python -m trainers --------------------------------------------------------------------

SPEC = encode_json(spec("0123456789ab"))


@settings(few, max_examples=40)
@given(data=mutated_json(SPEC), out=st.sampled_from(["trial", "", "/dev/null/x", "s3://", "a\nb"]))
def test_a_spoilt_spec_is_never_trained(data: bytes, out: str) -> None:
    Path("spec.json").write_bytes(data)
    assert trainers("spec.json", "--out", out).code == 2


@pytest.mark.slow
@settings(many, max_examples=3000)
@given(data=mutated_json(SPEC))
def test_thousands_of_spoilt_specs_are_never_trained(data: bytes) -> None:
    Path("spec.json").write_bytes(data)
    assert trainers("spec.json", "--out", "trial").code == 2
