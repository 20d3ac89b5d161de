"""Whether a node reads what the driver wrote. With nodes that do not: test_nodes.py."""

from pathlib import Path

import pytest

from analysis.storage import LocalStorage
from orchestrator.shared_storage import NotSharedError, require_shared, shared_probe


def test_a_node_that_sees_the_probe_may_run_trials(tmp_path: Path):
    sweep = LocalStorage(tmp_path / "sweep")
    with shared_probe(sweep) as key:
        require_shared(sweep.url, key)


def test_a_node_with_a_folder_of_its_own_may_not(tmp_path: Path):
    here, elsewhere = LocalStorage(tmp_path / "here"), LocalStorage(tmp_path / "elsewhere")
    with (
        shared_probe(here) as key,
        pytest.raises(NotSharedError, match=r"node\(s\) .* cannot read"),
    ):
        require_shared(elsewhere.url, key)


def test_a_probe_of_an_earlier_run_proves_nothing(tmp_path: Path):
    """A node may have a copy of the folder as it once was."""
    sweep, copy = LocalStorage(tmp_path / "sweep"), LocalStorage(tmp_path / "copy")
    with shared_probe(sweep) as earlier:
        copy.put(earlier, sweep.get(earlier))
    with shared_probe(sweep) as key, pytest.raises(NotSharedError):
        require_shared(copy.url, key)


def test_nothing_is_left_behind_by_this_run_or_by_one_that_was_killed(tmp_path: Path):
    sweep = LocalStorage(tmp_path / "sweep")
    sweep.put("storage-probe/of-a-killed-driver", b"")
    with shared_probe(sweep) as key:
        assert sweep.list() == [key]
    assert sweep.list() == []
