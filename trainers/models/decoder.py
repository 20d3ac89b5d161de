"""The decoders that widthlab trains, from token ids to logits, in one file.

- two families: gpt2 (learned positions, LayerNorm, biases, GELU) and llama (rotary positions,
  RMSNorm, SwiGLU, no biases)
- norm placement is one function per placement, in `PLACEMENTS`
- the FFN keeps its own width per layer; what leaves the non-linearity enters `down`, which is
  where the spectral probe taps ("post"); what enters the non-linearity is "pre"
- no dropout: one pass over the data, and an exact resume draws no random numbers
- weights are drawn per parameter from (replicate, name), so that cells of a grid that share a
  shape share its values
- a `transformers` model: saved, loaded and generated from like any other

Shapes: B sequences, T positions, d model width, H heads, h head dimension, D FFN width,
V vocabulary.
"""

import hashlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.generation import GenerationMixin
from transformers.modeling_outputs import CausalLMOutput

from trainers.spec import ModelSpec

#: Standard deviation of every weight matrix and embedding at the start (Radford et al., 2019).
INITIAL_STD = 0.02
ROTARY_BASE = 10_000.0
NORM_EPS = 1e-5


class DecoderConfig(PreTrainedConfig):  # type: ignore[misc]
    """The `ModelSpec` as `transformers` stores it."""

    model_type = "widthlab"

    architecture: str = "gpt2"
    norm: str = "pre"
    d_model: int = 64
    head_dim: int = 16
    ffn_widths: list[int] | tuple[int, ...] = (256, 256)
    context: int = 64
    vocab_size: int = 512
    ffn_weight: str = "plain"
    tie_word_embeddings: bool = False
    use_cache: bool = False

    @classmethod
    def of(cls, spec: ModelSpec) -> "DecoderConfig":
        """The configuration of a trial's model."""
        fields = spec.model_dump(exclude={"tie_embeddings"})
        return cls(**fields, tie_word_embeddings=spec.tie_embeddings)


# --- sub-layers ----------------------------------------------------------------------------


def make_norm(config: DecoderConfig) -> nn.Module:
    """LayerNorm for gpt2, RMSNorm for llama, over d_model."""
    if config.architecture == "llama":
        return nn.RMSNorm(config.d_model, eps=NORM_EPS)
    return nn.LayerNorm(config.d_model, eps=NORM_EPS)


class Attention(nn.Module):
    """Causal multi-head self-attention; llama turns queries and keys by their position."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        self.rotary = config.architecture == "llama"
        d, bias = config.d_model, config.architecture == "gpt2"
        self.q = nn.Linear(d, d, bias=bias)
        self.k = nn.Linear(d, d, bias=bias)
        self.v = nn.Linear(d, d, bias=bias)
        self.o = nn.Linear(d, d, bias=bias)

    def forward(self, x: Float[Tensor, "B T d"]) -> Float[Tensor, "B T d"]:
        B, T, d = x.shape
        q, k, v = (
            project(x).view(B, T, -1, self.head_dim).transpose(1, 2)  # (B, H, T, h)
            for project in (self.q, self.k, self.v)
        )
        if self.rotary:
            q, k = rotate(q), rotate(k)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        out: Tensor = self.o(mixed.transpose(1, 2).reshape(B, T, d))
        return out


def rotate(x: Float[Tensor, "B H T h"]) -> Float[Tensor, "B H T h"]:
    """Rotary position embedding (arXiv 2104.09864), pairing dimension i with i + h/2."""
    T, h = x.shape[-2:]
    exponent = torch.arange(0, h, 2, device=x.device, dtype=torch.float32) / h
    position = torch.arange(T, device=x.device, dtype=torch.float32)
    angle = torch.outer(position, ROTARY_BASE**-exponent)  # (T, h/2)
    cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


class FFN(nn.Module):
    """The feed-forward network: GELU (gpt2) or SwiGLU (llama) of width D.

    `nonlinearity_input` is the module whose output is the "pre" site; the input of `down` is the
    "post" site.
    """

    def __init__(self, config: DecoderConfig, width: int) -> None:
        super().__init__()
        self.width = width
        self.gated = config.architecture == "llama"
        d, bias = config.d_model, config.architecture == "gpt2"
        if self.gated:
            self.gate = nn.Linear(d, width, bias=bias)
        self.up = nn.Linear(d, width, bias=bias)
        self.down = nn.Linear(width, d, bias=bias)

    @property
    def nonlinearity_input(self) -> nn.Linear:
        """The projection that feeds the non-linearity."""
        return self.gate if self.gated else self.up

    def forward(self, x: Float[Tensor, "B T d"]) -> Float[Tensor, "B T d"]:
        if self.gated:
            hidden = F.silu(self.gate(x)) * self.up(x)
        else:
            hidden = F.gelu(self.up(x), approximate="tanh")
        out: Tensor = self.down(hidden)
        return out


# --- norm placement ------------------------------------------------------------------------

SubLayer = Callable[[Tensor], Tensor]
Placement = Callable[[Float[Tensor, "B T d"], SubLayer, SubLayer], Float[Tensor, "B T d"]]


def pre_ln(x: Tensor, f: SubLayer, norm: SubLayer) -> Tensor:
    """x + f(LN(x)) (arXiv 2002.04745)."""
    return x + f(norm(x))


def post_ln(x: Tensor, f: SubLayer, norm: SubLayer) -> Tensor:
    """LN(x + f(x)) (arXiv 1706.03762)."""
    return norm(x + f(x))


PLACEMENTS: dict[str, Placement] = {"pre": pre_ln, "post": post_ln}
#: Placements whose blocks leave the residual stream unnormalised: a final norm follows them.
FINAL_NORM = frozenset({"pre"})


class Block(nn.Module):
    """Attention, then the FFN, each placed against its norm."""

    def __init__(self, config: DecoderConfig, width: int) -> None:
        super().__init__()
        self.place = PLACEMENTS[config.norm]
        self.attention_norm = make_norm(config)
        self.attention = Attention(config)
        self.ffn_norm = make_norm(config)
        self.ffn = FFN(config, width)

    def forward(self, x: Float[Tensor, "B T d"]) -> Float[Tensor, "B T d"]:
        x = self.place(x, self.attention, self.attention_norm)
        return self.place(x, self.ffn, self.ffn_norm)


# --- the model -----------------------------------------------------------------------------


class Decoder(PreTrainedModel, GenerationMixin):  # type: ignore[misc]
    """A causal language model. Context beyond `config.context` is refused."""

    config_class = DecoderConfig
    base_model_prefix = ""
    _tied_weights_keys = {"head.weight": "tokens.weight"}  # noqa: RUF012 (read by transformers)

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__(config)
        self.tokens = nn.Embedding(config.vocab_size, config.d_model)
        if config.architecture == "gpt2":
            self.positions = nn.Embedding(config.context, config.d_model)
        self.layers = nn.ModuleList(Block(config, width) for width in config.ffn_widths)
        if config.norm in FINAL_NORM:
            self.final_norm = make_norm(config)
        self.head = nn.Linear(config.d_model, config.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.tokens

    def get_output_embeddings(self) -> nn.Module:
        return self.head

    def _init_weights(self, module: nn.Module) -> None:
        """Left to `initialise`, which knows the replicate."""

    def forward(
        self,
        input_ids: Int[Tensor, "B T"],
        labels: Int[Tensor, "B T"] | None = None,
        **_: Any,
    ) -> CausalLMOutput:
        """Logits (B, T, V); with labels (the input again, as is usual) also the mean loss, nats.

        Raises ValueError for more positions than the context.
        """
        T = input_ids.shape[1]
        if T > self.config.context:
            raise ValueError(f"{T} tokens do not fit the context of {self.config.context}")
        x = self.tokens(input_ids)
        if self.config.architecture == "gpt2":
            x = x + self.positions.weight[:T]
        for layer in self.layers:
            x = layer(x)
        if self.config.norm in FINAL_NORM:
            x = self.final_norm(x)
        logits = self.head(x)
        loss = None if labels is None else token_loss(logits[:, :-1], labels[:, 1:]).mean()
        return CausalLMOutput(loss=loss, logits=logits)

    def prepare_inputs_for_generation(self, input_ids: Tensor, **_: Any) -> dict[str, Tensor]:
        return {"input_ids": input_ids[:, -self.config.context :]}


def token_loss(
    logits: Float[Tensor, "B T V"], targets: Int[Tensor, "B T"]
) -> Float[Tensor, " tokens"]:
    """Cross-entropy of every token in nats, in float32 whatever the logits are."""
    return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), reduction="none")


@torch.no_grad()
def initialise(model: Decoder, replicate: int) -> None:
    """Matrices and embeddings N(0, 0.02^2), biases 0, gains 1, a function of (replicate, name).

    Each parameter has its own generator: its values do not depend on what else the model holds.
    """
    for name, parameter in model.named_parameters():
        if parameter.ndim >= 2:
            digest = hashlib.sha256(f"{replicate}/{name}".encode()).digest()
            generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))
            drawn = torch.randn(parameter.shape, generator=generator) * INITIAL_STD
            parameter.copy_(drawn.to(parameter.dtype))
        elif name.endswith("bias"):
            parameter.zero_()
        else:
            parameter.fill_(1.0)


def build(spec: ModelSpec, replicate: int) -> Decoder:
    """The model of a trial, initialised, in float32 on the CPU."""
    model = Decoder(DecoderConfig.of(spec))
    initialise(model, replicate)
    return model


def feed_forwards(model: nn.Module) -> Iterator[FFN]:
    """The FFN of every layer, from the first."""
    return (module for module in model.modules() if isinstance(module, FFN))
