"""What differs, beside the width, between trials that a judgement puts side by side.

A loss that depends on the width says nothing about the width where the tokens, the device or the
weight decay depend on the width too. So every setting of the trials is compared, whatever its name,
except those that are listed here with the reason why they may differ. A new setting is therefore
compared without further ado. A judgement over trials that differ is refused.

A value that is not known for a trial is compared with nothing: records of earlier versions have
fewer. The plan of a sweep uses this module too, so it needs no tables.
"""

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from analysis.refusal import Refusal
from analysis.wording import large, multiple, plural
from trialstore.sweep_file import LARGEST_NUMBER

LEARNING_RATE = "training.learning_rate"
#: Settings that the width, `match` and the replicate set. They differ by design.
SET_BY_THE_GRID = frozenset(
    {
        "model.ffn_widths",  # the width
        "model.d_model",  # `match` trades d_model for D
        "model.head_dim",  # `match` keeps the number of heads, so head_dim follows d_model
        "replicate",  # the same seeds in every width, by the pairing of replicates
    }
)
#: Settings that leave the final weights and every judged number as they are, or change them by
#: rounding only. They may differ, and a caveat names them.
NAMED = {
    "training.stop_on_collapse": "a trial that completes did not collapse",
    "evaluation.every": "measuring does not change the weights",
    "spectra.method": "both methods measure one spectrum; `auto` chooses by width itself",
    "spectra.sites": "each site is measured by itself",
    "spectra.buckets": "the laws use the spectra of all tokens",
    "spectra.memory_mb": "layers are measured in turn",
}
#: Prefixes of further names of this kind: the same batch in another order of summation (workers,
#: micro-batch, ZeRO stage, model of the device), and the versions of libraries.
LAYOUT, VERSIONS = "layout.", "versions."
#: What a result records, under these names. All else is a setting of spec.json.
TOKENS, HELD_OUT, MEASURED = "tokens trained", "held-out tokens", "held-out tokens measured"
SEMANTICS, DEVICE = "semantics version", "device"
RECORDED = frozenset({TOKENS, HELD_OUT, MEASURED, SEMANTICS, DEVICE})
#: Prefix of settings that only the rank laws depend on.
SPECTRA = "spectra."
#: What a result records, by the settings that set it: told only where none of these differs.
FOLLOWS_FROM = {
    MEASURED: ("evaluation.tokens", "model.context"),
}

#: Values of one setting, settings with their values, and ids of trials, that a sentence lists.
MOST_VALUES, MOST_SETTINGS, MOST_TRIALS = 8, 3, 3


@dataclass(frozen=True)
class Setup:
    """What one trial was trained with, or will be."""

    id: str
    multiplier: float  # D / d_model, as the sweep file has it
    settings: Mapping[str, Any]  # by name; a name that is missing is not known


@dataclass(frozen=True)
class Difference:
    """One setting that differs between trials."""

    name: str
    setups: tuple[Setup, ...]  # of the trials whose value is known

    @property
    def classes(self) -> list[tuple[Any, list[Setup]]]:
        """Each value with its trials, the most frequent value last."""
        found: dict[str, tuple[Any, list[Setup]]] = {}
        for setup in self.setups:
            value = setup.settings[self.name]
            found.setdefault(_key(value), (value, []))[1].append(setup)
        by_width = sorted(found.values(), key=_narrowest)
        usual = max(by_width, key=lambda one: len(one[1]))
        return [*(one for one in by_width if one is not usual), usual]

    @property
    def odd(self) -> list[Setup]:
        """The trials whose value is not the most frequent one."""
        return [setup for _, members in self.classes[:-1] for setup in members]

    @property
    def sentence(self) -> str:
        """The values and their widths: `training.steps 400 at 4x, 250 elsewhere`."""
        classes = self.classes
        usual = 2 * len(classes[-1][1]) > len(self.setups)
        if not usual:
            classes.sort(key=_narrowest)
        texts = _values([value for value, _ in classes])
        told = [
            f"{text} at {self._where(members)}"
            for text, (_, members) in zip(texts, classes, strict=True)
        ]
        if usual:
            told[-1] = f"{texts[-1]} elsewhere"
        if len(told) > MOST_VALUES:
            told = [*told[: MOST_VALUES - 1], f"and {len(told) - MOST_VALUES + 1} more values"]
        name = self.name.removeprefix(LAYOUT).removeprefix(VERSIONS)
        return f"{name} {', '.join(told)}"

    def to_dict(self) -> dict[str, Any]:
        """Return an entry of `differences` in recommendation.json."""
        return {
            "setting": self.name,
            "values": [
                {
                    "value": value,
                    "width_multipliers": sorted({setup.multiplier for setup in members}),
                    "trials": sorted(setup.id for setup in members),
                }
                for value, members in self.classes
            ],
        }

    def _where(self, members: Sequence[Setup]) -> str:
        """The widths of trials; single trials by their id where others of the width differ."""
        widths = sorted({setup.multiplier for setup in self.setups})
        chosen = {setup.id for setup in members}
        whole: list[bool] = []
        single: list[str] = []
        for width in widths:
            every = [setup.id for setup in self.setups if setup.multiplier == width]
            own = [one for one in every if one in chosen]
            whole.append(len(own) == len(every))
            if own and not whole[-1]:
                single.append(
                    f"{multiple(width)} in {len(own)} of {plural(len(every), 'trial')} "
                    f"({_some(own, MOST_TRIALS)})"
                )
        return " and ".join([*_spans(widths, whole), *single])


@dataclass(frozen=True)
class NotComparable(Refusal):
    """The refusal of a judgement over trials that differ in more than their width."""

    differences: tuple[Difference, ...] = ()

    @property
    def odd(self) -> frozenset[str]:
        """Ids of the trials that have another value than most."""
        return frozenset(setup.id for found in self.differences for setup in found.odd)

    @property
    def names(self) -> str:
        """The settings that differ, in words."""
        return ", ".join(f"`{found.name}`" for found in self.differences)


def compare(
    setups: Sequence[Setup], *, ranks: bool = False, free: Collection[str] = ()
) -> NotComparable | None:
    """Refuse to judge trials that differ in a setting that matters; None if they do not.

    Args:
        setups: the trials that enter the judgement.
        ranks: whether their spectra are judged; otherwise the settings of the spectra may differ.
        free: settings that may differ in this judgement.
    """
    found = [
        difference
        for difference in differing(setups)
        if difference.name not in SET_BY_THE_GRID and difference.name not in free
        if not _is_named(difference.name)
        if ranks or not difference.name.startswith(SPECTRA)
    ]
    names = {difference.name for difference in found}
    found = [one for one in found if names.isdisjoint(FOLLOWS_FROM.get(one.name, ()))]
    if not found:
        return None
    told = [difference.sentence for difference in found[:MOST_SETTINGS]]
    if len(found) > MOST_SETTINGS:
        told.append(f"and {_some([one.name for one in found[MOST_SETTINGS:]], len(found))}")
    return NotComparable(
        f"the trials differ in more than their width: {'; '.join(told)}",
        _way_out(found),
        differences=tuple(found),
    )


def named(setups: Sequence[Setup]) -> list[Difference]:
    """Return the differences that are no obstacle to a judgement and that a caveat names."""
    return [one for one in differing(setups) if _is_named(one.name)]


def elsewhere(setups: Sequence[Setup], told: Collection[str]) -> list[Difference]:
    """Return the differences that stand in no refusal and in no list of `named` ones.

    They lie between trials that no judgement puts side by side.

    Args:
        setups: the trials of a group.
        told: names of the settings that a refusal names, or that differ by design.
    """
    found = [
        one
        for one in differing(setups)
        if one.name not in told and one.name not in SET_BY_THE_GRID and not _is_named(one.name)
    ]
    causes = {one.name for one in found} | set(told)
    return [one for one in found if causes.isdisjoint(FOLLOWS_FROM.get(one.name, ()))]


def differing(setups: Iterable[Setup]) -> list[Difference]:
    """Return every setting with more than one known value, in the order of the settings."""
    setups = tuple(setups)
    names = dict.fromkeys(name for setup in setups for name in setup.settings)
    found = []
    for name in names:
        known = tuple(setup for setup in setups if name in setup.settings)
        if len({_key(setup.settings[name]) for setup in known}) > 1:
            found.append(Difference(name, known))
    return found


def _is_named(name: str) -> bool:
    return name in NAMED or name.startswith((LAYOUT, VERSIONS))


def _way_out(found: Sequence[Difference]) -> str:
    """What to do for an answer: another sweep file, or the same trials once more."""
    set_in_file = [one.name for one in found if one.name not in RECORDED]
    odd = sorted({setup.id for one in found for setup in one.odd})
    if not set_in_file:
        discard = "discard it" if len(odd) == 1 else "discard them"
        return (
            f"{discard} with `widthlab rerun` ({_some(odd, MOST_TRIALS)}) and run again as the "
            "others were"
        )
    way = (
        f"give all trials the same {_some(set_in_file, len(set_in_file))} in the sweep file (see "
        "its `overrides`)"
    )
    if LEARNING_RATE in set_in_file:
        way += (
            ", or put learning_rate on the grid: with three values each width is judged at its "
            "own best rate"
        )
    return way


def _narrowest(one: tuple[Any, Sequence[Setup]]) -> float:
    return min(setup.multiplier for setup in one[1])


def _key(value: Any) -> str:
    """Equal for equal values; 1 and 1.0 are equal."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return json.dumps(value, sort_keys=True, default=str)


def _values(values: Sequence[Any]) -> list[str]:
    """Values in words, in full where rounding would make two of them equal."""
    texts = [_value(value) for value in values]
    if len(set(texts)) == len(texts):
        return texts
    return [f"{value:,}" if type(value) is int else _key(value) for value in values]


def _value(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float) and abs(value) < LARGEST_NUMBER:
        return large(value) if abs(value) >= 1e5 else f"{value:.6g}"
    return value if isinstance(value, str) else _key(value)


def _some(words: Sequence[str], most: int) -> str:
    rest = len(words) - most
    return ", ".join(words[:most]) + (f" and {rest} more" if rest > 0 else "")


def _spans(widths: Sequence[float], chosen: Sequence[bool]) -> list[str]:
    """The chosen widths, neighbours as a span: `1x to 2.67x`, `8x`."""
    runs: list[list[float]] = [[]]
    for width, own in zip(widths, chosen, strict=True):
        if own:
            runs[-1].append(width)
        elif runs[-1]:
            runs.append([])
    return [
        " to ".join(multiple(width) for width in dict.fromkeys((run[0], run[-1])))
        for run in runs
        if run
    ]
