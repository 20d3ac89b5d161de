"""Convert decoders to the Llama and GPT-2 classes of `transformers`.

Weight geometries and LayerNorm scaling matter only in training: afterwards both can be multiplied
into plain weights (`folded`). A plain Pre-LN model with one FFN width is then a Llama or a GPT-2
(`as_stock`).
"""

import copy
from math import sqrt
from typing import Any, cast

import torch
from torch import Tensor
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
)

from trainers.models.decoder import NORM_EPS, ROTARY_BASE, Decoder, DecoderConfig
from trainers.models.linear import HypersphericalLinear, SpectralNormLinear, WeightNormLinear

#: The names of our activations in LlamaConfig and GPT2Config.
LLAMA_ACTIVATIONS = {"swiglu": "silu", "geglu": "gelu_pytorch_tanh"}
GPT2_ACTIVATIONS = {"gelu": "gelu_new", "relu": "relu", "relu2": "relu2"}


@torch.no_grad()
def folded(model: Decoder) -> Decoder:
    """Return a model of the same function with plain weights, and Pre-LN instead of LNS.

    A model with a user's own block is returned unchanged, because the block may depend on any
    field of the configuration.
    """
    as_it_is = model.config.ffn_weight == "plain" and model.config.norm != "lns"
    if as_it_is or model.config.block is not None:
        return model
    config = copy.deepcopy(model.config)
    weights = model.state_dict()
    for name, module in model.named_modules():
        if isinstance(module, WeightNormLinear | HypersphericalLinear | SpectralNormLinear):
            weights[f"{name}.weight"] = module.effective_weight()
            for factor in ("gain", "left"):
                weights.pop(f"{name}.{factor}", None)
    config.ffn_weight = "plain"
    if config.norm == "lns":  # LN(x) / sqrt(layer) is a norm with smaller gain and bias
        config.norm = "pre"
        for name in weights:
            match name.split("."):
                case ["layers", index, "attention_norms" | "ffn_norms", *_]:
                    weights[name] = weights[name] / sqrt(int(index) + 1)
    plain = Decoder(config)
    plain.load_state_dict(weights)
    return cast(Decoder, plain.eval())


def as_stock(model: Decoder) -> PreTrainedModel | None:
    """Return the LlamaForCausalLM or GPT2LMHeadModel of the same function, or None.

    Args:
        model: A model that `folded` returned.
    """
    config: DecoderConfig = model.config
    if (
        config.norm != "pre"
        or config.ffn_weight != "plain"
        or len(set(config.ffn_widths)) > 1
        or config.qk_norm
        or config.block is not None
    ):
        return None
    if config.architecture == "llama" and config.activation in LLAMA_ACTIVATIONS:
        return _filled(LlamaForCausalLM(_llama_config(config)), _llama_weights(model))
    if (
        config.architecture == "gpt2"
        and config.activation in GPT2_ACTIVATIONS
        and config.kv_heads == config.heads
    ):
        return _filled(GPT2LMHeadModel(_gpt2_config(config)), _gpt2_weights(model))
    return None


def _filled(model: PreTrainedModel, weights: dict[str, Tensor]) -> PreTrainedModel:
    model.load_state_dict(weights)
    return cast(PreTrainedModel, model.eval())


def _shared(config: DecoderConfig) -> dict[str, Any]:
    return {
        "vocab_size": config.vocab_size,
        "tie_word_embeddings": config.tie_word_embeddings,
        "bos_token_id": None,
        "eos_token_id": None,
    }


def _llama_config(config: DecoderConfig) -> LlamaConfig:
    return LlamaConfig(
        **_shared(config),
        hidden_size=config.d_model,
        intermediate_size=config.ffn_widths[0],
        num_hidden_layers=config.depth,
        num_attention_heads=config.heads,
        num_key_value_heads=config.kv_heads,
        head_dim=config.head_dim,
        hidden_act=LLAMA_ACTIVATIONS[config.activation],
        max_position_embeddings=config.context,
        rms_norm_eps=NORM_EPS,
        rope_parameters={"rope_type": "default", "rope_theta": ROTARY_BASE},
    )


def _llama_weights(model: Decoder) -> dict[str, Tensor]:
    ours = model.state_dict()
    names = {
        "attention_norms.0": "input_layernorm",
        "ffn_norms.0": "post_attention_layernorm",
        **{f"attention.{part}": f"self_attn.{part}_proj" for part in "qkvo"},
        **{f"ffn.{part}": f"mlp.{part}_proj" for part in ("gate", "up", "down")},
    }
    layers = {
        f"model.layers.{layer}.{their}.weight": ours[f"layers.{layer}.{our}.weight"]
        for layer in range(model.config.depth)
        for our, their in names.items()
    }
    return layers | {
        "model.embed_tokens.weight": ours["tokens.weight"],
        "model.norm.weight": ours["final_norm.weight"],
        "lm_head.weight": ours["head.weight"],
    }


def _gpt2_config(config: DecoderConfig) -> GPT2Config:
    return GPT2Config(
        **_shared(config),
        n_positions=config.context,
        n_embd=config.d_model,
        n_layer=config.depth,
        n_head=config.heads,
        n_inner=config.ffn_widths[0],
        activation_function=GPT2_ACTIVATIONS[config.activation],
        layer_norm_epsilon=NORM_EPS,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
    )


def _gpt2_weights(model: Decoder) -> dict[str, Tensor]:
    """GPT-2 stores matrices as [in, out], and queries, keys and values in one."""
    ours = model.state_dict()
    theirs = {
        "transformer.wte.weight": ours["tokens.weight"],
        "transformer.wpe.weight": ours["positions.weight"],
        "transformer.ln_f.weight": ours["final_norm.weight"],
        "transformer.ln_f.bias": ours["final_norm.bias"],
        "lm_head.weight": ours["head.weight"],
    }
    norms = {"attention_norms.0": "ln_1", "ffn_norms.0": "ln_2"}
    maps = {"attention.o": "attn.c_proj", "ffn.up": "mlp.c_fc", "ffn.down": "mlp.c_proj"}
    for layer in range(model.config.depth):
        at, to = f"layers.{layer}", f"transformer.h.{layer}"
        for kind in ("weight", "bias"):
            for our, their in norms.items():
                theirs[f"{to}.{their}.{kind}"] = ours[f"{at}.{our}.{kind}"]
            for our, their in maps.items():
                theirs[f"{to}.{their}.{kind}"] = ours[
                    f"{at}.{our}.{kind}"
                ].t()  # no effect on a bias
            qkv = [ours[f"{at}.attention.{part}.{kind}"] for part in "qkv"]
            theirs[f"{to}.attn.c_attn.{kind}"] = torch.cat(qkv).t()
    return theirs
