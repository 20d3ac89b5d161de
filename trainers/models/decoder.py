"""The decoders that widthlab trains, from token ids to logits, in one file.

- Three families: gpt2 (learned positions, LayerNorm, biases, GELU), llama (rotary positions,
  RMSNorm, SwiGLU, no biases) and ngpt (rotary positions, all vectors of unit norm: ngpt.py).
- Each norm placement (Pre-LN, Post-LN, Mix-LN, ...) is one function in placements.py.
- Every layer has its own FFN width D. The spectral probe reads two sites of an FFN: "pre", the
  input of the non-linearity, and "post", the input of `down`.
- FFN matrices are plain or reparametrised (weight norm, spectral norm, ...): linear.py.
- Options: grouped-query attention (`kv_heads`) and a norm on queries and keys (`qk_norm`).
- A user's class can replace the FFN or the whole layer: own_block.py.
- No dropout, so a resumed trial has no random state to restore. No KV cache.
- `Decoder` is a `transformers` model: `from_pretrained`, `save_pretrained` and `generate` work.

An exported model carries copies of this file, placements, linear, ngpt and own_block. They import
only torch, transformers and each other, so shapes are comments and not jaxtyping annotations.

Shapes: B sequences, T positions, d model width, H query heads, K key/value heads, h head
dimension, D FFN width, V vocabulary size.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.generation import GenerationMixin
from transformers.modeling_outputs import CausalLMOutput

from .linear import GEOMETRIES, SpectralNormLinear
from .ngpt import LearnedScale, ScaledLinear, SphereStep, unit, unit_norm_dim
from .own_block import block_class, replaces_whole_block
from .placements import PLACEMENTS, Place

ROTARY_BASE = 10_000.0
NORM_EPS = 1e-5


class DecoderConfig(PreTrainedConfig):  # type: ignore[misc]
    """The configuration of a decoder, in the form that `transformers` saves and loads.

    `trainers.models.build.configuration` makes it from a trial's ModelSpec with every default
    resolved. `ffn_widths` holds D of each layer; `post_layers` is how many of the first layers
    are Post-LN under Mix-LN; `block` is the `package.module:Class` of a user's own block.
    """

    model_type = "widthlab"

    architecture: str = "gpt2"
    norm: str = "pre"
    d_model: int = 64
    head_dim: int = 16
    kv_heads: int = 4
    ffn_widths: list[int] | tuple[int, ...] = (256, 256)
    activation: str = "gelu"
    ffn_weight: str = "plain"
    qk_norm: bool = False
    post_layers: int = 0
    block: str | None = None
    context: int = 64
    vocab_size: int = 512
    tie_word_embeddings: bool = False
    use_cache: bool = False

    @property
    def depth(self) -> int:
        """Number of layers."""
        return len(self.ffn_widths)

    @property
    def heads(self) -> int:
        """Number of query heads H."""
        return self.d_model // self.head_dim

    @property
    def biased(self) -> bool:
        """Whether linear layers have biases."""
        return self.architecture == "gpt2"


# --- sub-layers ----------------------------------------------------------------------------


class RMSNorm(nn.RMSNorm):
    """RMSNorm in the precision of its gain, float32 for bf16 inputs as autocast's LayerNorm."""

    def forward(self, x: Tensor) -> Tensor:
        x = x.to(self.weight.dtype)
        if x.is_cuda:
            return super().forward(x)
        # torch has no fused CPU kernel: its fallback takes a third longer than this line.
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + NORM_EPS) * self.weight


def make_norm(config: DecoderConfig, size: int) -> nn.Module:
    """Return the norm over `size` features: RMSNorm for llama, LayerNorm for gpt2."""
    if config.architecture == "llama":
        return RMSNorm(size, eps=NORM_EPS)
    return nn.LayerNorm(size, eps=NORM_EPS)


class Positions(NamedTuple):
    """The token positions, as factors of `rotate`, and the attention mask.

    `cos` and `sin` are None for gpt2, which adds positions to the embeddings.
    """

    cos: Tensor | None  # (T, h); (B, 1, T, h) if padding shifts the positions of some sequences
    sin: Tensor | None  # the shape of cos
    mask: Tensor | None  # (B, 1, T, T), True where a query attends to a key; None: causal


class Attention(nn.Module):
    """Causal multi-head self-attention.

    llama and ngpt rotate queries and keys by their positions. ngpt then normalises both and
    multiplies the scores by sqrt(h) instead of dividing (arXiv 2410.01131, equations 15 and 16).
    With K < H every key and value head serves H / K query heads (arXiv 2305.13245).
    """

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.head_dim, self.groups = config.head_dim, config.heads // config.kv_heads
        d, kv = config.d_model, config.kv_heads * config.head_dim
        self.q = nn.Linear(d, d, bias=config.biased)
        self.k = nn.Linear(d, kv, bias=config.biased)
        self.v = nn.Linear(d, kv, bias=config.biased)
        self.o = nn.Linear(d, d, bias=config.biased)
        self.score_scale = config.head_dim**-0.5
        self.q_norm = make_norm(config, config.head_dim) if config.qk_norm else None
        self.k_norm = make_norm(config, config.head_dim) if config.qk_norm else None
        self.qk_scale = None
        if config.architecture == "ngpt":
            self.score_scale = config.head_dim**0.5
            self.qk_scale = LearnedScale(d, 1.0, d**-0.5)

    def forward(self, x: Tensor, positions: Positions) -> Tensor:
        B, T, d = x.shape
        q, k, v = (
            project(x).view(B, T, -1, self.head_dim).transpose(1, 2)  # (B, H, T, h); k, v: K
            for project in (self.q, self.k, self.v)
        )
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        if positions.cos is not None and positions.sin is not None:
            q, k = (rotate(one, positions.cos, positions.sin) for one in (q, k))
        if self.qk_scale is not None:
            scale = self.qk_scale().view(-1, 1, self.head_dim).to(q.dtype)  # (H, 1, h)
            q, k = unit(q) * scale, unit(k) * scale
        if self.groups > 1:
            # Not enable_gqa: if a kernel lacks it, torch falls back to one that stores all scores.
            k, v = (one.repeat_interleave(self.groups, dim=1) for one in (k, v))  # (B, H, T, h)
        mixed = F.scaled_dot_product_attention(  # (B, H, T, h)
            q,
            k,
            v,
            attn_mask=positions.mask,
            is_causal=positions.mask is None,
            scale=self.score_scale,
        )
        out: Tensor = self.o(mixed.transpose(1, 2).reshape(B, T, d))
        return out


def rotary(places: Tensor, head_dim: int) -> tuple[Tensor, Tensor]:
    """Return cos and sin of the rotary embedding's angles (arXiv 2104.09864) for `rotate`.

    `places` are token positions (..., T) and h = `head_dim` is even. Both results are float32
    (..., T, h); the first half of the sines is negated.
    """
    exponent = torch.arange(0, head_dim, 2, device=places.device, dtype=torch.float32) / head_dim
    angle = places[..., None].float() * ROTARY_BASE**-exponent  # (..., T, h/2)
    cos, sin = angle.cos(), angle.sin()
    return torch.cat((cos, cos), dim=-1), torch.cat((-sin, sin), dim=-1)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the dimension pairs (i, i + h/2) of x (B, H, T, h) by the angles of `rotary`."""
    other = x.roll(x.shape[-1] // 2, dims=-1)
    return torch.addcmul(x * cos.to(x.dtype), other, sin.to(x.dtype))


def gelu(x: Tensor) -> Tensor:
    """GELU in the tanh approximation of GPT-2 (arXiv 1606.08415)."""
    return F.gelu(x, approximate="tanh")


def relu2(x: Tensor) -> Tensor:
    """Squared ReLU: relu(x)^2 (arXiv 2109.08668)."""
    return F.relu(x).square()


#: `activation` without a gate, and with one: its function and the function of its gate.
UNGATED: dict[str, Callable[[Tensor], Tensor]] = {"gelu": gelu, "relu": F.relu, "relu2": relu2}
GATES: dict[str, Callable[[Tensor], Tensor]] = {"swiglu": F.silu, "geglu": gelu}


class FFN(nn.Module):
    """The feed-forward network of width D: down(act(up(x))), or down(act(gate(x)) * up(x)).

    Gated variants: arXiv 2002.05202. The probe reads the output of `nonlinearity_input` as site
    "pre" and the input of `down` as site "post".
    """

    def __init__(self, config: DecoderConfig, width: int) -> None:
        super().__init__()
        self.width = width
        self.gated = config.activation in GATES
        self.activation = (GATES if self.gated else UNGATED)[config.activation]
        linear, d, bias = GEOMETRIES[config.ffn_weight], config.d_model, config.biased
        if self.gated:
            self.gate = linear(d, width, bias=bias)
        self.up = linear(d, width, bias=bias)
        self.down = linear(width, d, bias=bias)

    @property
    def nonlinearity_input(self) -> nn.Module:
        """The projection that feeds the non-linearity."""
        return self.gate if self.gated else self.up

    def forward(self, x: Tensor) -> Tensor:
        if self.gated:
            hidden = self.activation(self.gate(x)) * self.up(x)  # (B, T, D)
        else:
            hidden = self.activation(self.up(x))
        out: Tensor = self.down(hidden)  # (B, T, D) -> (B, T, d)
        return out


class SphereFFN(FFN):
    """The FFN of nGPT: SwiGLU with a learned scale per unit of gate and up.

    The gate is also multiplied by sqrt(d): its outputs on unit vectors are small, and SiLU is
    nearly linear there (arXiv 2410.01131, equations 20 and 21).
    """

    def __init__(self, config: DecoderConfig, width: int) -> None:
        super().__init__(config, width)
        self.gate = ScaledLinear(config.d_model, width, grow=config.d_model**0.5)
        self.up = ScaledLinear(config.d_model, width)


# --- layers --------------------------------------------------------------------------------


class Block(nn.Module):
    """One layer of FFN width D = `width`: attention, then the FFN, both placed by `config.norm`.

    A user's block may inherit from it (docs/own-block.md).
    """

    def __init__(self, config: DecoderConfig, width: int, place: Place) -> None:
        super().__init__()
        placement = PLACEMENTS[config.norm]
        self.placed, self.place = placement.apply, place
        self.attention = Attention(config)
        self.attention_norms = make_norms(config, placement.norms)
        self.ffn = make_ffn(config, width)
        self.ffn_norms = make_norms(config, placement.norms)

    def forward(self, x: Tensor, positions: Positions) -> Tensor:
        def attention(y: Tensor) -> Tensor:
            out: Tensor = self.attention(y, positions)
            return out

        x = self.placed(x, attention, self.attention_norms, self.place)
        out: Tensor = self.placed(x, self.ffn, self.ffn_norms, self.place)
        return out


def make_norms(config: DecoderConfig, number: int) -> nn.ModuleList:
    """Return the norms of one sub-layer; for nGPT its `SphereStep` takes their place."""
    if config.architecture == "ngpt":
        return nn.ModuleList([SphereStep(config.d_model)])
    return nn.ModuleList(make_norm(config, config.d_model) for _ in range(number))


def make_ffn(config: DecoderConfig, width: int) -> nn.Module:
    """Return the FFN of a layer: widthlab's, or the user's own if `config.block` replaces it."""
    if config.block is not None and not replaces_whole_block(config.block):
        return block_class(config.block)(config, width)
    return SphereFFN(config, width) if config.architecture == "ngpt" else FFN(config, width)


def make_head(config: DecoderConfig) -> nn.Linear:
    """Return the output layer, d -> V, without bias. nGPT learns a scale per logit."""
    if config.architecture == "ngpt":
        return ScaledLinear(config.d_model, config.vocab_size, stored=config.d_model**-0.5)
    return nn.Linear(config.d_model, config.vocab_size, bias=False)


# --- the model -----------------------------------------------------------------------------


class Decoder(PreTrainedModel, GenerationMixin):  # type: ignore[misc]
    """A causal language model over at most `config.context` positions.

    The constructor leaves weights to torch's defaults; `trainers.models.build.build` makes an
    initialised model. See `forward` for shapes.
    """

    config_class = DecoderConfig
    base_model_prefix = ""
    _tied_weights_keys = {"head.weight": "tokens.weight"}  # noqa: RUF012 (read by transformers)

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__(config)
        self.tokens = nn.Embedding(config.vocab_size, config.d_model)
        if config.architecture == "gpt2":
            self.positions = nn.Embedding(config.context, config.d_model)
        block: Callable[..., nn.Module] = Block
        if config.block is not None and replaces_whole_block(config.block):
            block = block_class(config.block)
        self.layers = nn.ModuleList(
            block(config, width, Place(number, config.depth, config.post_layers))
            for number, width in enumerate(config.ffn_widths, start=1)
        )
        final_norm = PLACEMENTS[config.norm].final_norm
        self.final_norm = make_norm(config, config.d_model) if final_norm else None
        self.head = make_head(config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.tokens

    def get_output_embeddings(self) -> nn.Module:
        return self.head

    def _init_weights(self, module: nn.Module) -> None:
        """Do nothing: `trainers.models.build.initialise` draws the weights by replicate."""

    @property
    def unit_norm_dims(self) -> dict[str, int]:
        """The dimension of unit norm of each nGPT matrix, by name; empty for others."""
        if self.config.architecture != "ngpt":
            return {}
        return {name: unit_norm_dim(name) for name, p in self.named_parameters() if p.ndim == 2}

    def begin_update(self) -> None:
        """Announce an optimiser update: call it before the first forward pass of each.

        Spectral norms run one power iteration in that pass.
        """
        for module in self.modules():
            if isinstance(module, SpectralNormLinear):
                module.begin_update()

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool = False,
        return_dict: bool = True,
    ) -> CausalLMOutput:
        """Compute logits, and with labels the loss.

        Args:
            input_ids: Token ids (B, T).
            attention_mask: (B, T), 0 at padding. None means no padding.
            labels: (B, T), usually `input_ids` again; -100 marks tokens without a loss. They are
                shifted here: position t predicts label t + 1.
            use_cache: Ignored: there is no cache. `transformers` passes it to every model.
            return_dict: Ignored: the return type is always the same.

        Returns:
            Logits (B, T, V), and the mean cross-entropy in nats per token or None.

        Raises:
            ValueError: T is larger than `config.context`.
        """
        T = input_ids.shape[1]
        if T > self.config.context:
            raise ValueError(f"{T} tokens do not fit the context of {self.config.context}")
        places, mask = _padded(attention_mask) if _has_padding(attention_mask) else (None, None)
        x = self.tokens(input_ids)  # (B, T, d)
        cos = sin = None
        if self.config.architecture == "gpt2":
            x = x + (self.positions.weight[:T] if places is None else self.positions(places))
        else:
            where = torch.arange(T, device=x.device) if places is None else places[:, None]
            cos, sin = rotary(where, self.config.head_dim)
        positions = Positions(cos, sin, mask)
        for layer in self.layers:
            x = layer(x, positions)
        if self.final_norm is not None:
            x = self.final_norm(x)
        logits = self.head(x)  # (B, T, V)
        loss = None
        if labels is not None:
            loss = F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten())
        return CausalLMOutput(loss=loss, logits=logits)

    def prepare_inputs_for_generation(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, **_: Any
    ) -> dict[str, Any]:
        window = slice(-self.config.context, None)
        mask = None if attention_mask is None else attention_mask[:, window]
        return {"input_ids": input_ids[:, window], "attention_mask": mask}


def _has_padding(attention_mask: Tensor | None) -> bool:
    return attention_mask is not None and not bool(attention_mask.all())


def _padded(attention_mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return positions (B, T) that skip padding and the mask (B, 1, T, T) that hides it."""
    assert attention_mask is not None
    real = attention_mask.bool()
    T = real.shape[1]
    causal = torch.ones(T, T, dtype=torch.bool, device=real.device).tril()
    # Padding attends to itself: softmax over an empty row would be NaN.
    itself = torch.eye(T, dtype=torch.bool, device=real.device)
    mask = (causal & real[:, None, :]) | itself
    return (real.cumsum(1) - 1).clamp(min=0), mask[:, None]
