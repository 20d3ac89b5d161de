"""Whether a node reads what the driver wrote. With nodes that do not: test_nodes.py."""

import errno
import os
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from storages import ScriptedStorage

from orchestrator.tune import shared_storage
from orchestrator.tune.node_room import Node
from orchestrator.tune.shared_storage import (
    NotSharedError,
    check_shared,
    require_shared,
    shared_probe,
)
from trialstore.errors import InputError
from trialstore.storage import LocalStorage


def test_a_node_that_sees_the_probe_may_run_trials(tmp_path: Path):
    sweep = LocalStorage(tmp_path / "sweep")
    with shared_probe(sweep) as key:
        require_shared(sweep.url, key)


def test_a_node_with_a_folder_of_its_own_may_not(tmp_path: Path):
    here, elsewhere = LocalStorage(tmp_path / "here"), LocalStorage(tmp_path / "elsewhere")
    with (
        shared_probe(here) as key,
        pytest.raises(NotSharedError, match=re.escape(elsewhere.url)),
    ):
        require_shared(elsewhere.url, key)


def test_that_a_storage_does_not_answer_says_nothing_of_the_node(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    away = ScriptedStorage(tmp_path)
    away.before("get", OSError(errno.ESTALE, os.strerror(errno.ESTALE)))
    monkeypatch.setattr(shared_storage, "open_storage", lambda url: away)
    with pytest.raises(OSError) as raised:  # noqa: PT011
        require_shared(str(tmp_path), "key")
    assert raised.value.errno == errno.ESTALE


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


def test_a_probe_that_cannot_be_removed_undoes_nothing(tmp_path: Path, caplog):
    sweep = ScriptedStorage(tmp_path)
    sweep.before("delete", OSError("curl: timeout"))
    with shared_probe(sweep) as key:
        assert LocalStorage(tmp_path).list() == [key]
    assert "curl: timeout" in caplog.text


def test_every_node_that_cannot_read_is_named_with_what_is_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """In one message, and without those that have gone meanwhile."""
    ray = pytest.importorskip("ray")
    names = ("driver", "a", "b", "c", "gone")
    nodes = [Node({"CPU": 1.0}, name, f"{at:056x}") for at, name in enumerate(names, start=1)]
    says: dict[str, Any] = {node.id: False for node in nodes}
    says[nodes[2].id] = ray.exceptions.RaySystemError("no widthlab")

    def get(answer: str, timeout: float) -> Any:
        if isinstance(says[answer], Exception):
            raise says[answer]
        return says[answer]

    monkeypatch.setattr(
        ray, "get_runtime_context", lambda: SimpleNamespace(get_node_id=lambda: nodes[0].id)
    )
    monkeypatch.setattr(ray, "remote", lambda function: Remote())
    monkeypatch.setattr(ray, "wait", lambda *_, **__: None)
    monkeypatch.setattr(ray, "get", get)
    monkeypatch.setattr(shared_storage, "alive_nodes", lambda: nodes[:-1])
    spec = SimpleNamespace(
        layout=SimpleNamespace(workers=1, cpus_per_worker=1, device="cpu"), id="0a"
    )
    with pytest.raises(InputError) as refused:
        check_shared(LocalStorage(tmp_path), nodes, [spec])  # type: ignore[list-item]
    message = str(refused.value)
    assert "node(s) a, c " in message
    assert "node(s) b " in message
    assert "gone" not in message
    assert LocalStorage(tmp_path).list() == []


class Remote:
    """A task that answers with the id of the node it was sent to."""

    def options(self, *, num_cpus: int, scheduling_strategy: Any) -> "Remote":
        self._node = scheduling_strategy.node_id
        return self

    def remote(self, *_: Any) -> str:
        return self._node
