"""From a trial's spec to its model, with weights that its replicate alone decides."""

import hashlib
from collections.abc import Iterator
from typing import cast

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from trainers.models.decoder import Decoder, DecoderConfig
from trainers.models.linear import SpectralNormLinear, WeightNormLinear
from trainers.models.model_spec import ModelSpec
from trainers.models.ngpt import LearnedScale
from trainers.models.own_block import FeedForward
from trainers.models.placements import PLACEMENTS

#: Standard deviation of every weight matrix and embedding at the start (Radford et al., 2019).
INITIAL_STD = 0.02
#: Power iterations that start a spectral norm off: enough for a random matrix.
SPECTRAL_START = 50


def configuration(spec: ModelSpec) -> DecoderConfig:
    """The spec as the model reads it: every default resolved."""
    same = {"architecture", "norm", "d_model", "head_dim", "context", "vocab_size"}
    same |= {"ffn_weight", "qk_norm", "post_layers"}
    return DecoderConfig(
        **spec.model_dump(include=same),
        ffn_widths=list(spec.ffn_widths),
        kv_heads=spec.key_value_heads,
        activation=spec.ffn_activation,
        block=spec.block.path if spec.block else None,
        tie_word_embeddings=spec.tie_embeddings,
    )


def build(spec: ModelSpec, replicate: int) -> Decoder:
    """The model of a trial, initialised, in float32 on the CPU."""
    model = Decoder(configuration(spec))
    initialise(model, spec, replicate)
    return model


@torch.no_grad()
def initialise(model: Decoder, spec: ModelSpec, replicate: int) -> None:
    """Matrices and embeddings N(0, 0.02^2), biases 0, gains 1, a function of (replicate, name).

    Each parameter has its own generator: its values do not depend on what else the model holds,
    so cells of a grid that share a shape share its values. `depth_scaled` divides attention-out
    and FFN-down by sqrt(2 depth) (Radford et al., 2019); a placement may scale its branches. What
    a weight geometry divides out again (all but a weight norm's gain) such a factor cannot change.
    nGPT's matrices start at N(0, 1/d_model), normalised.
    """
    std = spec.d_model**-0.5 if spec.architecture == "ngpt" else INITIAL_STD
    for name, parameter in model.named_parameters():
        if parameter.ndim >= 2:
            digest = hashlib.sha256(f"{replicate}/{name}".encode()).digest()
            generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))
            drawn = torch.randn(parameter.shape, generator=generator) * std
            parameter.copy_((drawn * _branch_factor(spec, name)).to(parameter.dtype))
        elif name.endswith("bias"):
            parameter.zero_()
        else:
            parameter.fill_(1.0)
    parameters = dict(model.named_parameters())
    for name, dim in model.unit_norm_dims.items():
        parameters[name].copy_(F.normalize(parameters[name], dim=dim))
    for module in model.modules():
        match module:
            case LearnedScale():
                module.weight.fill_(module.stored)
            case WeightNormLinear():
                module.gain.copy_(module.weight.norm(dim=1))  # W starts as v
            case SpectralNormLinear():
                module.iterate(SPECTRAL_START)


def _branch_factor(spec: ModelSpec, name: str) -> float:
    """By what a matrix of a residual branch is multiplied at the start; 1 elsewhere."""
    factor = 1.0
    if spec.initialisation == "depth_scaled" and name.endswith((".o.weight", ".down.weight")):
        factor /= (2 * spec.depth) ** 0.5
    if ".ffn." in name or name.endswith((".attention.v.weight", ".attention.o.weight")):
        factor *= PLACEMENTS[spec.norm].branch_scale(spec.depth)
    return factor


def feed_forwards(model: nn.Module) -> Iterator[FeedForward]:
    """The FFN of every layer, from the first."""
    return (cast(FeedForward, layer.ffn) for layer in cast(Decoder, model).layers)


def token_loss(
    logits: Float[Tensor, "B T V"], targets: Int[Tensor, "B T"]
) -> Float[Tensor, " tokens"]:
    """Cross-entropy of every token in nats, in float32 whatever the logits are."""
    return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), reduction="none")
