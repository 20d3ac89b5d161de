"""The part of a trial's spec that describes its decoder. Nothing here imports torch."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, ValidationInfo, field_validator, model_validator

from trainers.models.placements import PLACEMENTS
from trainers.strict import (
    MAX_CONTEXT,
    MAX_DEPTH,
    MAX_HEAD_DIM,
    MAX_VOCABULARY,
    MAX_WIDTH,
    Frozen,
)


def _known_placement(name: str) -> str:
    if name not in PLACEMENTS:
        raise ValueError(f"{name!r} should be one of {', '.join(PLACEMENTS)}")
    return name


Architecture = Literal["gpt2", "llama", "ngpt"]
NormPlacement = Annotated[str, AfterValidator(_known_placement)]
FFNWeight = Literal["plain", "weight_norm", "spectral_norm", "hyperspherical"]
Activation = Literal["gelu", "relu", "relu2", "swiglu", "geglu"]
Initialisation = Literal["plain", "depth_scaled"]

#: The default activation of each architecture.
OWN_ACTIVATION: dict[Architecture, Activation] = {
    "gpt2": "gelu",
    "llama": "swiglu",
    "ngpt": "swiglu",
}
GATED: frozenset[Activation] = frozenset({"swiglu", "geglu"})


class BlockSpec(Frozen):
    """A user's own module that replaces the FFN or the whole layer: see docs/own-block.md."""

    path: str = Field(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")  # package.module:Class
    source_hash: str = Field(min_length=8)  # of the module's source file


class ModelSpec(Frozen):
    """Every choice about a decoder.

    `ffn_widths` holds D of every layer; heads = d_model / head_dim.

    Equal models have equal specs, and so equal trial ids: an `activation` or `kv_heads` that
    equals the architecture's default becomes None, and a field that has no effect must keep its
    default (`post_layers` without Mix-LN, the fields of NGPT_FIXES with nGPT).

    Raises:
        ValueError: (as pydantic's ValidationError) shapes do not fit, or choices exclude each
            other.
    """

    architecture: Architecture
    norm: NormPlacement
    d_model: int = Field(ge=1, le=MAX_WIDTH)
    head_dim: int = Field(ge=2, le=MAX_HEAD_DIM)
    ffn_widths: tuple[int, ...] = Field(min_length=1, max_length=MAX_DEPTH, strict=False)
    context: int = Field(ge=2, le=MAX_CONTEXT)
    vocab_size: int = Field(ge=2, le=MAX_VOCABULARY)
    ffn_weight: FFNWeight = "plain"
    tie_embeddings: bool = False
    activation: Activation | None = None  # None: the architecture's own
    kv_heads: int | None = Field(default=None, ge=1)  # None: as many as heads
    qk_norm: bool = False  # queries and keys are normed over head_dim, with a gain
    post_layers: int = Field(default=0, ge=0)  # Mix-LN: number of Post-LN layers, from the first
    initialisation: Initialisation = "plain"
    block: BlockSpec | None = None

    @property
    def depth(self) -> int:
        """Number of layers."""
        return len(self.ffn_widths)

    @property
    def is_post_ln(self) -> bool:
        """Whether every layer is Post-LN."""
        return self.norm == "post" or self.post_layers == self.depth

    @property
    def heads(self) -> int:
        """Number of attention heads."""
        return self.d_model // self.head_dim

    @property
    def key_value_heads(self) -> int:
        """Number of key/value heads; each serves heads / key_value_heads query heads."""
        return self.kv_heads or self.heads

    @property
    def ffn_activation(self) -> Activation:
        """The activation of the FFN, with the architecture's default resolved."""
        return self.activation or OWN_ACTIVATION[self.architecture]

    @property
    def gated(self) -> bool:
        """Whether the FFN has a gate beside its up-projection."""
        return self.ffn_activation in GATED

    @field_validator("activation")
    @classmethod
    def _leave_out_own(cls, value: Activation | None, info: ValidationInfo) -> Activation | None:
        return None if value == OWN_ACTIVATION.get(info.data.get("architecture", "gpt2")) else value

    @field_validator("kv_heads")
    @classmethod
    def _leave_out_all(cls, value: int | None, info: ValidationInfo) -> int | None:
        d_model, head_dim = info.data.get("d_model"), info.data.get("head_dim")
        all_heads = d_model // head_dim if d_model and head_dim else None
        return None if value == all_heads else value

    @model_validator(mode="after")
    def _check_shapes(self) -> "ModelSpec":
        if self.d_model % self.head_dim:
            raise ValueError(
                f"head_dim {self.head_dim} does not divide d_model {self.d_model}; "
                "choose a head_dim that does"
            )
        if self.architecture != "gpt2" and self.head_dim % 2:
            raise ValueError(f"head_dim {self.head_dim} must be even: rotary positions turn pairs")
        if self.heads % self.key_value_heads:
            raise ValueError(
                f"kv_heads {self.kv_heads} does not divide the {self.heads} heads of "
                f"d_model {self.d_model} and head_dim {self.head_dim}"
            )
        for width in self.ffn_widths:
            if width < 1:
                raise ValueError(f"FFN width D = {width} must be at least 1")
            if width > MAX_WIDTH:
                raise ValueError(f"FFN width D = {width} must be at most {MAX_WIDTH}")
        return self

    @model_validator(mode="after")
    def _check_combination(self) -> "ModelSpec":
        if (self.architecture == "ngpt") != (self.norm == "ngpt"):
            raise ValueError(
                f"norm {self.norm} does not go with architecture {self.architecture}: nGPT has "
                "its own placement, ngpt, and no other architecture has it"
            )
        if self.architecture == "ngpt":
            for name, why in NGPT_FIXES.items():
                if getattr(self, name) != ModelSpec.model_fields[name].default:
                    raise ValueError(f"{name} {getattr(self, name)} does not go with ngpt: {why}")
        least, most = (1, self.depth) if self.norm == "mix" else (0, 0)
        if not least <= self.post_layers <= most:
            raise ValueError(
                f"post_layers {self.post_layers} with norm {self.norm} and depth {self.depth}: "
                f"it counts the Post-LN layers of Mix-LN, here {least} to {most}"
            )
        if self.block is not None and self.ffn_weight != "plain":
            raise ValueError(
                f"ffn_weight {self.ffn_weight} is of widthlab's own FFN, which model.block replaces"
            )
        return self


#: Fields that nGPT fixes (arXiv 2410.01131), and why.
NGPT_FIXES = {
    "ffn_weight": "its matrices all have unit norm along d_model",
    "kv_heads": "its learned scale of queries and keys is the same for both, head by head",
    "tie_embeddings": "it is defined with an output head of its own",
    "activation": "its FFN is SwiGLU with learned scales",
    "qk_norm": "it normalises queries and keys always",
    "initialisation": "its matrices are normalised at the start",
    "block": "its blocks are part of its definition",
}
