"""The notebook of the documentation runs from its first cell to its last."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

DOCUMENTATION = Path(__file__).parents[2] / "docs"
NOTEBOOK = DOCUMENTATION / "notebook.ipynb"

#: Runs the code cells in one namespace, without Jupyter, and shows what the last line of each is
#: worth, as Jupyter would.
RUNNER = """
import ast, json, sys

space = {"__name__": "__main__"}
for cell in json.load(open(sys.argv[1]))["cells"]:
    if cell["cell_type"] != "code":
        continue
    tree = ast.parse("".join(cell["source"]))
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, cell["id"], "exec"), space)
    if last is not None:
        value = eval(compile(ast.Expression(last.value), cell["id"], "eval"), space)
        if value is not None:
            print(value._repr_html_())
"""


def test_it_is_kept_without_outputs() -> None:
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert code
    for cell in code:
        assert cell["outputs"] == []
        assert cell["execution_count"] is None


@pytest.mark.processes
@pytest.mark.slow
def test_every_cell_runs_and_shows_what_it_says(tmp_path: Path) -> None:
    """By its JSON alone: Jupyter is no dependency."""
    done = subprocess.run(
        [sys.executable, "-c", RUNNER, str(NOTEBOOK)],
        cwd=tmp_path, env={**os.environ, "TMPDIR": str(tmp_path), "RAY_TMPDIR": "/tmp"},
        capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    shown = done.stdout
    assert "Sweep tiny: 3 trials" in shown  # the plan
    assert "Sweep tiny: 3 completed" in shown  # the run
    assert "Verdict of tiny" in shown
    assert "Law: power" in shown
    assert "soft rank" in shown  # of the probe
