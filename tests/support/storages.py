"""A storage whose calls a test scripts: to fail, to halt, to meet others, to be counted."""

import fnmatch
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from trialstore.storage import LocalStorage

#: Methods that change what is stored.
PUTS = ("put", "put_new", "put_file")
WRITES = (*PUTS, "delete")
METHODS = (*WRITES, "get", "open", "get_file", "list", "sizes", "unfinished")


@dataclass(frozen=True)
class Call:
    """One call of a storage: `put` of `result.json`."""

    method: str
    key: str  # as the caller wrote it; of a child storage, within the child
    path: Path  # the file that it is about

    def __str__(self) -> str:
        return f"{self.method} {self.key}"


Action = Callable[[Call], object]
Keys = str | Callable[[str], bool]


@dataclass
class Rule:
    """An action, and the calls that it is for."""

    methods: tuple[str, ...]
    action: Action | BaseException
    keys: Keys
    skip: int  # matching calls that pass by first
    times: int | None  # how often it applies after that; None: always

    def matches(self, call: Call) -> bool:
        """Whether the call is one of this rule's. Counts it."""
        named = self.keys if callable(self.keys) else partial(fnmatch.fnmatchcase, pat=self.keys)
        if call.method not in self.methods or not named(call.key):
            return False
        if self.skip:
            self.skip -= 1
            return False
        if self.times is not None:
            self.times -= 1
            return self.times >= 0
        return True


@dataclass
class Script:
    """The rules of a storage and of its children, and the calls that they have answered."""

    before: list[Rule] = field(default_factory=list)
    after: list[Rule] = field(default_factory=list)
    done: list[Call] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def follow(self, rules: list[Rule], call: Call) -> None:
        with self.lock:
            due = [rule.action for rule in rules if rule.matches(call)]
        for action in due:
            if isinstance(action, BaseException):
                raise action
            action(call)


class ScriptedStorage(LocalStorage):
    """A `LocalStorage` that does what a test asks for before or after some of its calls.

    Example:
        storage = ScriptedStorage(tmp_path)
        storage.before("put", OSError("full"), keys="*.parquet")      # every put of a part fails
        storage.after("put list", lambda call: take(storage), skip=2, times=1)  # after the third

    A call within a call counts too: `get` opens. Children share the script.
    """

    def __init__(self, root: Path, script: Script | None = None) -> None:
        super().__init__(root)
        self._script = script or Script()

    def before(
        self, methods: str, action: Action | BaseException, *, keys: Keys = "*",
        skip: int = 0, times: int | None = None,
    ) -> None:  # fmt: skip
        """Call an action, or raise an error, before the matching calls.

        Args:
            methods: names of methods of a storage, between spaces.
            keys: a pattern such as `*.parquet`, or a function that says whether a key matches.
            skip: matching calls that pass by first.
            times: how often it applies after that; None for always.
        """
        self._script.before.append(Rule(tuple(methods.split()), action, keys, skip, times))

    def after(
        self, methods: str, action: Action | BaseException, *, keys: Keys = "*",
        skip: int = 0, times: int | None = None,
    ) -> None:  # fmt: skip
        """The same after the call has been answered and before its caller goes on."""
        self._script.after.append(Rule(tuple(methods.split()), action, keys, skip, times))

    def forget_rules(self) -> None:
        """Go on as a plain storage."""
        self._script.before.clear()
        self._script.after.clear()

    def done(self, *methods: str) -> list[Call]:
        """Calls so far that did not fail, in their order: all, or those of the named methods."""
        return [call for call in self._script.done if not methods or call.method in methods]

    def forget_calls(self) -> None:
        self._script.done.clear()

    def child(self, folder: str) -> "ScriptedStorage":
        return ScriptedStorage(self.path(folder), self._script)


def _scripted(method: str) -> Callable[..., Any]:
    plain = getattr(LocalStorage, method)

    def call(self: ScriptedStorage, key: str = "", *arguments: Any, **options: Any) -> Any:
        script, this = self._script, Call(method, key, self.path(key))
        script.follow(script.before, this)
        answer = plain(self, key, *arguments, **options)
        script.done.append(this)
        script.follow(script.after, this)
        return answer

    return call


for _method in METHODS:
    setattr(ScriptedStorage, _method, _scripted(_method))


def meeting(parties: int) -> Action:
    """Hold every thread at its first matching call until so many threads are there."""
    barrier, mine = threading.Barrier(parties), threading.local()

    def meet(_: Call) -> None:
        if not getattr(mine, "met", False):
            mine.met = True
            barrier.wait(30)

    return meet
