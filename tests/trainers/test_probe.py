"""The probe on modules of any model: what passes is collected, and nothing is left behind."""

import re
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from repository import ROOT
from torch import Tensor, nn

from trainers.spectra.covariance import Covariance
from trainers.spectra.probe import IGNORED, NothingSeenError, Probe, Tap

DOCUMENTED = ROOT / "docs" / "spectra.md"


class Ffn(nn.Module):
    """Two projections with a bend between them; `down` also tells how long its output is."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(6, 10)
        self.down = nn.Linear(10, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(torch.tanh(self.up(x)))


@pytest.fixture
def ffn() -> Ffn:
    torch.manual_seed(0)
    return Ffn()


@pytest.fixture
def tokens() -> Tensor:
    return torch.randn(3, 7, 6, generator=torch.Generator().manual_seed(1))


def cov(collected: Covariance) -> np.ndarray:
    return (collected.scatter / collected.degrees_of_freedom).numpy()


def expected(x: Tensor) -> np.ndarray:
    return np.cov(x.detach().flatten(0, -2).double().numpy(), rowvar=False)


def hooks_of(model: nn.Module) -> int:
    return sum(
        len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()
    )


def test_outputs_and_inputs_of_modules_are_watched(ffn: Ffn, tokens: Tensor) -> None:
    with Probe({"pre": Tap(ffn.up, "output"), "post": Tap(ffn.down, "input")}) as probe:
        ffn(tokens)
        ffn(tokens * 2)
    both = torch.cat([tokens, tokens * 2])
    np.testing.assert_allclose(cov(probe["pre"]), expected(ffn.up(both)), atol=1e-5)
    np.testing.assert_allclose(cov(probe["post"]), expected(torch.tanh(ffn.up(both))), atol=1e-5)
    assert probe["pre"].count == 2 * 3 * 7


def test_no_hook_and_no_graph_is_left_behind(ffn: Ffn, tokens: Tensor) -> None:
    with Probe({0: Tap(ffn.up, "output")}) as probe:
        assert hooks_of(ffn) == 1
        loss = ffn(tokens).square().mean()
    assert hooks_of(ffn) == 0
    assert not probe[0].scatter.requires_grad
    loss.backward()  # what was watched can still be learnt from
    assert ffn.up.weight.grad is not None


def test_no_hook_is_left_behind_after_an_exception(ffn: Ffn) -> None:
    with pytest.raises(RuntimeError, match="shapes"), Probe({0: Tap(ffn.down, "input")}):
        ffn(torch.ones(2, 5))
    assert hooks_of(ffn) == 0


def test_watching_changes_no_output(ffn: Ffn, tokens: Tensor) -> None:
    alone = ffn(tokens)
    with Probe({0: Tap(ffn.down, "input")}):
        assert torch.equal(ffn(tokens), alone)


def test_padding_is_no_sample(ffn: Ffn, tokens: Tensor) -> None:
    attention_mask = torch.ones(3, 7, dtype=torch.long)
    attention_mask[0, 4:] = attention_mask[2, 1:] = 0
    padded = tokens.masked_fill(attention_mask[..., None] == 0, 1e6)
    with Probe({0: Tap(ffn.up, "output")}) as probe:
        probe.label(torch.where(attention_mask.bool(), 0, IGNORED))
        ffn(padded)
    assert probe[0].count == 4 + 7 + 1
    kept = ffn.up(tokens[attention_mask.bool()])
    np.testing.assert_allclose(cov(probe[0]), expected(kept), atol=1e-5)


def test_groups_are_told_apart_and_are_the_whole_together(ffn: Ffn, tokens: Tensor) -> None:
    labels = torch.arange(21).view(3, 7) % 4 - 1  # a quarter of them is ignored
    with Probe({0: Tap(ffn.up, "output")}, groups=3) as probe:
        probe.label(labels)
        ffn(tokens)
    for number, group in enumerate(probe.groups(0)):
        chosen = ffn.up(tokens[labels == number])
        np.testing.assert_allclose(cov(group), expected(chosen), atol=1e-5)
    whole = ffn.up(tokens[labels != IGNORED])
    np.testing.assert_allclose(cov(probe[0]), expected(whole), atol=1e-5)


def test_labels_of_other_tokens_are_refused(ffn: Ffn, tokens: Tensor) -> None:
    with Probe({"up": Tap(ffn.up, "output")}) as probe:
        probe.label(torch.zeros(3, 6, dtype=torch.long))
        with pytest.raises(ValueError, match=r"labels \[3, 6\] .*\[3, 7, 10\] of up"):
            ffn(tokens)


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (torch.ones(3, 7, dtype=torch.long), r"label 1 and 1 groups, .* torch.where\(mask.bool"),
        (torch.ones(3, 7, dtype=torch.bool), r"labels of torch.bool .* torch.where\(mask, 0, IGN"),
        (torch.ones(3, 7), r"labels of torch.float32"),
    ],
)
def test_a_mask_that_is_no_labels_is_refused(ffn: Ffn, mask: Tensor, message: str) -> None:
    """Taken as labels, the ones of an attention mask would choose nothing but padding."""
    with pytest.raises(ValueError, match=message):
        Probe({0: Tap(ffn.up, "output")}).label(mask)


class Named(nn.Module):
    """Takes its input by name and gives more than one thing back, in one way or another."""

    def __init__(self, wrap) -> None:
        super().__init__()
        self.wrap = wrap

    def forward(self, *, hidden: Tensor):
        return self.wrap(hidden)


@dataclass
class Output:
    loss: None
    hidden: Tensor


@pytest.mark.parametrize(
    "wrap",
    [
        lambda x: (x, x[..., :2]),
        lambda x: [None, x],
        lambda x: {"loss": None, "hidden": x},
        lambda x: Output(None, x),
        lambda x: x.double(),
    ],
    ids=["tuple", "list", "mapping", "dataclass", "float64"],
)
def test_what_passes_is_the_first_tensor_of_whatever_is_taken_or_given(tokens, wrap) -> None:
    module = Named(wrap)
    with Probe({"in": Tap(module, "input"), "out": Tap(module, "output")}) as probe:
        module(hidden=tokens)
    for key in ("in", "out"):
        np.testing.assert_allclose(cov(probe[key]), expected(tokens), atol=1e-5)


def test_a_module_that_passes_no_activations_is_named() -> None:
    module = Named(lambda x: None)
    with Probe({"ffn 3": Tap(module, "output")}), pytest.raises(TypeError, match="ffn 3"):
        module(hidden=torch.ones(2, 3))


def test_one_vector_is_one_sample() -> None:
    module = Named(lambda x: x)
    with Probe({0: Tap(module, "output")}) as probe:
        for vector in samples_of_two:
            module(hidden=vector)
    assert probe[0].count == 2
    np.testing.assert_allclose(cov(probe[0]), [[2.0, -2.0], [-2.0, 2.0]])


samples_of_two = (torch.tensor([1.0, 3.0]), torch.tensor([3.0, 1.0]))


def test_what_was_collected_in_inference_mode_can_be_used_outside(ffn: Ffn, tokens) -> None:
    with Probe({0: Tap(ffn.up, "output")}, groups=2) as probe:
        probe.label(torch.arange(21).view(3, 7) % 2)
        with torch.inference_mode():
            ffn(tokens)
        with torch.no_grad():
            ffn(tokens * 2)
    both = ffn.up(torch.cat([tokens, tokens * 2]))
    np.testing.assert_allclose(cov(probe[0]), expected(both), atol=1e-5)
    assert len(probe[0].eigenvalues()) == 10


def test_a_probe_is_not_entered_twice(ffn: Ffn, tokens: Tensor) -> None:
    probe = Probe({0: Tap(ffn.up, "output")})
    with probe, pytest.raises(RuntimeError, match="already"):
        probe.__enter__()
    assert hooks_of(ffn) == 0
    with probe:  # again, but not at the same time
        ffn(tokens)
    assert probe[0].count == 21


def test_a_tap_that_nothing_passed_has_no_covariance_and_says_what_to_do(ffn: Ffn) -> None:
    with Probe({"up": Tap(ffn.up, "output")}) as probe:
        pass
    with pytest.raises(NothingSeenError, match=r"^nothing .* 'up': .*`with probe:`.* Linear$"):
        probe["up"]
    with pytest.raises(NothingSeenError, match="'up'"):
        probe.groups("up")


def test_a_name_that_is_no_tap_is_answered_with_the_names_that_are(ffn: Ffn, tokens) -> None:
    with Probe({"up": Tap(ffn.up, "output"), "down": Tap(ffn.down, "input")}) as probe:
        ffn(tokens)
    with pytest.raises(KeyError, match=r"'Up'.*'up', 'down'"):
        probe["Up"]


@pytest.mark.parametrize("side", ["in", "out", "Input", "", None])
def test_a_side_that_no_module_has_is_refused(ffn: Ffn, side) -> None:
    with pytest.raises(ValueError, match=f"{side!r}.*'input' or 'output'"):
        Tap(ffn.up, side)


def test_the_documented_lines_work() -> None:
    """On the small GPT-2 of transformers that they build themselves."""
    (lines,) = re.findall(r"```python\n(.*?)```", DOCUMENTED.read_text(), re.S)[:1]
    space: dict = {}
    exec(lines, space)
    assert 1 <= space["metrics"].hard_rank <= space["metrics"].soft_rank <= 256
