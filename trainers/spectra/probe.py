"""The probe: covariances of what passes through chosen modules of any torch model.

    with Probe({"post": Tap(model.h[0].mlp.c_proj, "input")}) as probe, torch.no_grad():
        model(tokens)
    print(measure(probe["post"].eigenvalues()))

Activations [..., D] are samples [N, D]. See `analysis.spectrum` for what is made of them.
"""

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, fields, is_dataclass
from types import TracebackType
from typing import Any, Generic, Literal, Self, TypeVar, get_args

import torch
from jaxtyping import Int
from torch import Tensor, nn

from trainers.spectra.covariance import Covariance

Key = TypeVar("Key", bound=Hashable)

#: The label of a token that is no sample, such as padding.
IGNORED = -1


Side = Literal["input", "output"]


@dataclass(frozen=True)
class Tap:
    """A module and which side of it is watched.

    Args:
        module: Any module of a model.
        of: `"output"`, or `"input"`: the module's first tensor argument.

    Raises:
        ValueError: `of` is neither.
    """

    module: nn.Module
    of: Side

    def __post_init__(self) -> None:
        if self.of not in get_args(Side):
            sides = " or ".join(map(repr, get_args(Side)))
            raise ValueError(f"Tap of {self.of!r}: a module is watched at its {sides}")


class NothingSeenError(KeyError):
    """No forward pass has gone through a tap while its probe was entered."""

    def __str__(self) -> str:
        return str(self.args[0])  # KeyError alone would quote it


class Probe(Generic[Key]):
    """Watches taps while it is entered; leaves no hook and no graph behind.

    What has been collected stays readable afterwards, and entering again goes on collecting. For
    one thread.
    """

    def __init__(self, taps: Mapping[Key, Tap], groups: int = 1) -> None:
        """With several `groups`, every token is a sample of the one that `label` names."""
        self._taps = dict(taps)
        self._groups = groups
        self._labels: Tensor | None = None
        self._collected: dict[Key, list[Covariance]] = {}
        self._hooks: list[torch.utils.hooks.RemovableHandle] = []

    def __enter__(self) -> Self:
        """Raises RuntimeError where it is entered already."""
        if self._hooks:
            raise RuntimeError("the probe is watching already: leave it before it is entered again")
        self._hooks = [self._hook(key, tap) for key, tap in self._taps.items()]
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def label(self, labels: Int[Tensor, "..."] | None) -> None:
        """Of the following forward passes: the group of every token, negative for none.

        A mask of padding is `torch.where(attention_mask.bool(), 0, IGNORED)`. None makes all
        tokens samples of the first group. Raises ValueError for labels that are no integers or
        name a group that the probe does not have.
        """
        if labels is not None:
            if labels.dtype == torch.bool or labels.is_floating_point():
                raise ValueError(
                    f"labels of {labels.dtype} are no numbers of groups; a mask becomes labels by "
                    "torch.where(mask, 0, IGNORED)"
                )
            if labels.numel() and int(labels.max()) >= self._groups:
                raise ValueError(
                    f"label {int(labels.max())} and {self._groups} groups, counted from 0; a mask "
                    "becomes labels by torch.where(mask.bool(), 0, IGNORED)"
                )
        self._labels = labels

    def __getitem__(self, key: Key) -> Covariance:
        """Return the covariance of all samples of one tap. Raises as `groups` does."""
        groups = self.groups(key)
        if len(groups) == 1:
            return groups[0]
        whole = Covariance(groups[0].width, groups[0].mean.device)
        for group in groups:
            whole.merge(group)
        return whole

    def groups(self, key: Key) -> list[Covariance]:
        """Return one covariance per group, of the samples of one tap.

        Raises:
            NothingSeenError: No forward pass has gone through the tap's module.
            KeyError: The probe has no such tap.
        """
        if key not in self._taps:
            raise KeyError(f"no tap {key!r}; the probe has {', '.join(map(repr, self._taps))}")
        if key not in self._collected:
            raise NothingSeenError(
                f"nothing has passed the tap {key!r}: call the model inside `with probe:`, and "
                f"check that its forward pass calls this {type(self._taps[key].module).__name__}"
            )
        return self._collected[key]

    def _hook(self, key: Key, tap: Tap) -> torch.utils.hooks.RemovableHandle:
        if tap.of == "input":

            def before(_: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
                self._take(key, (*inputs, *named.values()))

            return tap.module.register_forward_pre_hook(before, with_kwargs=True)

        def after(_: nn.Module, __: Any, output: Any) -> None:
            self._take(key, output)

        return tap.module.register_forward_hook(after)

    def _take(self, key: Key, passed: Any) -> None:
        activations = _first_tensor(passed)
        if activations is None or activations.ndim == 0:
            raise TypeError(
                f"what passes {key} holds no activations [..., D]: {type(passed).__name__}"
            )
        width, device = activations.shape[-1], activations.device
        if key not in self._collected:
            self._collected[key] = [Covariance(width, device) for _ in range(self._groups)]
        groups = self._collected[key]
        if self._labels is None:
            groups[0].add(activations)
            return
        if self._labels.shape != activations.shape[:-1]:
            raise ValueError(
                f"labels {list(self._labels.shape)} of tokens do not fit activations "
                f"{list(activations.shape)} of {key}"
            )
        labels = self._labels.to(device)
        for number, group in enumerate(groups):
            group.add(activations[labels == number])


def _first_tensor(passed: Any) -> Tensor | None:
    """The first tensor among what a module takes or gives, in order."""
    if isinstance(passed, Tensor):
        return passed
    if isinstance(passed, Mapping):
        passed = tuple(passed.values())
    elif is_dataclass(passed):
        passed = tuple(getattr(passed, field.name) for field in fields(passed))
    if isinstance(passed, tuple | list):
        return next((found for item in passed if (found := _first_tensor(item)) is not None), None)
    return None
