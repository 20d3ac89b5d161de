"""The cost of a trial from its spec alone: parameters, FLOPs and memory, without torch.

Parameters are exact. FLOPs count a multiplication and an addition as two, and only matrix
multiplications. Memory is an estimate, good enough to refuse a trial that cannot fit.
"""

from dataclasses import dataclass

from trainers.models.model_spec import ModelSpec
from trainers.models.placements import PLACEMENTS
from trainers.spec import TrialSpec

#: Forward 2, backward 4 FLOPs per weight and token (arXiv 2001.08361, section 2.1).
FLOPS_PER_WEIGHT = 6

FP32_BYTES = 4
BF16_BYTES = 2
ADAM_MOMENT_BYTES = 2 * FP32_BYTES


@dataclass(frozen=True)
class Parameters:
    """Numbers of parameters by component. result.json has them under the same names.

    Attributes:
        total: All parameters.
        non_embedding: Attention, FFN and norms: the N of the scaling laws (arXiv 2001.08361,
            section 2.1).
        embedding: Token embeddings and learned position embeddings.
        head: The output projection, or 0 if it is tied to the embedding. Like `attention` and
            `ffn`, it includes biases, gains of weights and learned scales.
        attention: The attention of all layers.
        ffn: The FFNs of all layers.
        norm: Gains and biases of all norms, those of queries and keys included, and nGPT's steps.
    """

    total: int
    non_embedding: int
    embedding: int
    head: int
    attention: int
    ffn: int
    norm: int


def parameters(model: ModelSpec) -> Parameters:
    """Return the exact number of parameters of a model. Imports torch for a user's own block."""
    if model.block is not None:
        layers = _own_block_layers(model)
    else:
        layers = _Layers(
            attention=model.depth * _attention(model),
            ffn=sum(_ffn(model, D) for D in model.ffn_widths),
            norm=model.depth * _layer_norms(model),
        )
    d, ngpt = model.d_model, model.architecture == "ngpt"
    positions = model.context if model.architecture == "gpt2" else 0
    embedding = (model.vocab_size + positions) * d
    head = 0 if model.tie_embeddings else model.vocab_size * d
    head += model.vocab_size if ngpt else 0  # a learned scale per logit
    norm = layers.norm + (_norm(model, d) if PLACEMENTS[model.norm].final_norm else 0)
    return Parameters(
        total=embedding + head + layers.attention + layers.ffn + norm,
        non_embedding=layers.attention + layers.ffn + norm,
        embedding=embedding,
        head=head,
        attention=layers.attention,
        ffn=layers.ffn,
        norm=norm,
    )


@dataclass(frozen=True)
class _Layers:
    """Parameters of all layers together."""

    attention: int
    ffn: int
    norm: int


def _attention(model: ModelSpec) -> int:
    d, kv = model.d_model, model.key_value_heads * model.head_dim
    biases = 2 * d + 2 * kv if model.architecture == "gpt2" else 0
    scales = d if model.architecture == "ngpt" else 0
    return 2 * d * d + 2 * d * kv + biases + scales


def _ffn(model: ModelSpec, D: int) -> int:
    d = model.d_model
    outputs = (2 if model.gated else 1) * D + d  # rows of gate and up, and of down
    per_output = (model.architecture == "gpt2") + (model.ffn_weight == "weight_norm")
    scales = 2 * D if model.architecture == "ngpt" else 0
    return _ffn_matrices(model) * d * D + per_output * outputs + scales


def _layer_norms(model: ModelSpec) -> int:
    if model.architecture == "ngpt":
        return 2 * model.d_model  # a learned step size for each sub-layer
    around = 2 * PLACEMENTS[model.norm].norms * _norm(model, model.d_model)
    return around + (2 * _norm(model, model.head_dim) if model.qk_norm else 0)


def _norm(model: ModelSpec, size: int) -> int:
    """Gain and bias of a LayerNorm, or the gain of an RMSNorm."""
    return size if model.architecture == "llama" else 2 * size


def _own_block_layers(model: ModelSpec) -> _Layers:
    # A user's block can only be counted by building it, which needs torch.
    from trainers.check_block import count_layers

    return _Layers(**count_layers(model))


def training_flops_per_token(model: ModelSpec) -> int:
    """Return the FLOPs of the forward and backward pass for one token.

    They are 6 per weight of every matrix multiplication, the output head included and embedding
    look-ups left out, and 12 L d_model context for attention scores and their weighted sum
    (arXiv 2204.02311, appendix B, which does not halve the latter for the causal mask). The
    matrices of a user's own block count as multiplied once per token.
    """
    d, L, kv = model.d_model, model.depth, model.key_value_heads * model.head_dim
    if model.block is not None:
        from trainers.check_block import layer_matrices

        layers = layer_matrices(model)
    else:
        layers = L * (2 * d * d + 2 * d * kv) + _ffn_matrices(model) * d * sum(model.ffn_widths)
    head = model.vocab_size * d
    return FLOPS_PER_WEIGHT * (layers + head) + 12 * L * d * model.context


def inference_flops_per_token(model: ModelSpec) -> int:
    """Return the FLOPs of the forward pass for one token of a full context: a third of training."""
    return training_flops_per_token(model) // 3


def training_memory_bytes(spec: TrialSpec) -> int:
    """Return the estimated peak memory of one worker, in bytes.

    The estimate is the sum of:

    - Model state, as ZeRO divides it (arXiv 1910.02054, section 5): weights, gradients, two float32
      Adam moments (one for Muon) and, if the engine trains a copy, float32 master weights.
    - Activations of a micro-batch kept for the backward pass (arXiv 2205.05198, section 4.1,
      without dropout and without stored attention scores). At the peak, when that pass begins,
      there are three float32 numbers per logit: its log-probability and both gradients.
    - Scatter matrices of a snapshot, which may still be there when the next update begins.
    """
    model, layout = spec.model, spec.layout
    stage, workers = layout.zero_stage, layout.workers
    element = BF16_BYTES if spec.training.precision == "bf16" else FP32_BYTES
    stored = FP32_BYTES if spec.autocast else element  # of weights and of the residual stream
    counts = parameters(model)

    weights = stored / (workers if stage >= 3 else 1)
    gradients = FP32_BYTES / (workers if stage >= 2 else 1)
    master = FP32_BYTES if stage >= 1 else 0
    optimizer = (ADAM_MOMENT_BYTES + master) / (workers if stage >= 1 else 1)
    cast = BF16_BYTES if spec.autocast else 0
    state = counts.total * (weights + gradients + optimizer + cast)
    if spec.training.optimizer == "muon":
        second = (counts.attention + counts.ffn) * ADAM_MOMENT_BYTES / 2
        state -= second / (workers if stage >= 1 else 1)
    state += element * _derived_weights(model)

    sequences = layout.micro_batch or spec.sequences // workers
    kept = stored * _kept_of_stream(model) + element * _kept_within(model)
    activations = sequences * model.context * (kept + 3 * FP32_BYTES * model.vocab_size)
    return round(state + activations + _scatter_bytes(spec))


def _scatter_bytes(spec: TrialSpec) -> int:
    spectra = spec.spectra
    wanted = sum(map(spectra.matrix_bytes, spec.model.ffn_widths)) * len(spectra.sites)
    return min(wanted, spectra.memory_mb * 2**20)


def _derived_weights(model: ModelSpec) -> int:
    """Elements of matrices that every forward pass computes from the stored ones."""
    d, D = model.d_model, sum(model.ffn_widths)
    if model.architecture == "ngpt":
        return 2 * d * D + d * model.vocab_size  # gate, up and head, multiplied by their scales
    return 0 if model.ffn_weight == "plain" else _ffn_matrices(model) * d * D


def _kept_of_stream(model: ModelSpec) -> int:
    """Numbers per token kept in the precision of the residual stream: the inputs of norms."""
    # nGPT's step on the sphere keeps x, the sub-layer's output, their difference and their sum.
    around = 4 if model.architecture == "ngpt" else PLACEMENTS[model.norm].norms
    return 2 * around * model.depth * model.d_model


def _kept_within(model: ModelSpec) -> int:
    """Numbers per token kept in the precision of matrix multiplications."""
    # d_model-wide: outputs of norms; q, k, v and the attention's result; q and k before their norm,
    # and for nGPT after it too.
    wide = 2 * PLACEMENTS[model.norm].norms + 4 + 2 * model.qk_norm
    wide += 4 * (model.architecture == "ngpt")
    # D-wide: input and output of the non-linearity; if gated, also up and the product.
    return model.depth * wide * model.d_model + (4 if model.gated else 2) * sum(model.ffn_widths)


def _ffn_matrices(model: ModelSpec) -> int:
    """Matrices of d_model x D in an FFN: gate, up, down, or up, down."""
    return 3 if model.gated else 2
