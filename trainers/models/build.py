"""Build a trial's model from its spec, with initial weights that depend only on the replicate."""

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

#: Standard deviation of initial weight matrices and embeddings (Radford et al., 2019: GPT-2).
INITIAL_STD = 0.02
#: Power iterations for the initial spectral norm: enough for a random matrix.
SPECTRAL_START = 50


def configuration(spec: ModelSpec) -> DecoderConfig:
    """Return the model's configuration, with every default of the spec resolved."""
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
    """Return the initialised model of a trial, in float32 on the CPU.

    Args:
        spec: The model's shape and options.
        replicate: The seed of the initial weights; see `initialise`.

    Raises:
        ImportError: The module of `spec.block` cannot be imported.
        AttributeError: That module lacks the class.

    Example:
        model = build(trial.model, trial.replicate)
        logits = model(tokens).logits  # (B, T) -> (B, T, V)
    """
    model = Decoder(configuration(spec))
    initialise(model, spec, replicate)
    return model


@torch.no_grad()
def initialise(model: Decoder, spec: ModelSpec, replicate: int) -> None:
    """Draw the initial weights in place, each as a function of (replicate, parameter name).

    Matrices and embeddings are N(0, 0.02^2), biases 0, gains 1. nGPT's matrices are
    N(0, 1/d_model), then normalised (arXiv 2410.01131).

    Each parameter has its own generator: two models that share a parameter's name and shape
    start from the same values, whatever else they contain.

    `depth_scaled` divides attention-out and FFN-down by sqrt(2 depth) (Radford et al., 2019);
    DeepNorm also scales the residual branches (`Placement.branch_scale`). Spectral norm and
    hyperspherical weights divide such a factor out again; weight norm keeps it in its gain.
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
    """Return the factor on a matrix of a residual branch at initialisation; 1 elsewhere."""
    factor = 1.0
    if spec.initialisation == "depth_scaled" and name.endswith((".o.weight", ".down.weight")):
        factor /= (2 * spec.depth) ** 0.5
    if ".ffn." in name or name.endswith((".attention.v.weight", ".attention.o.weight")):
        factor *= PLACEMENTS[spec.norm].branch_scale(spec.depth)
    return factor


def feed_forwards(model: nn.Module) -> Iterator[FeedForward]:
    """Yield the FFN of every layer of a `Decoder`, first layer first."""
    return (cast(FeedForward, layer.ffn) for layer in cast(Decoder, model).layers)


def token_loss(
    logits: Float[Tensor, "B T V"], targets: Int[Tensor, "B T"]
) -> Float[Tensor, " tokens"]:
    """Return the cross-entropy of every token in nats, (B * T,).

    It is computed in float32 even for bf16 logits. `targets` are not shifted here.
    """
    return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), reduction="none")
