"""The columns of a trial's two tables."""

import pyarrow as pa

METRICS = "metrics"
SPECTRA = "spectra"

#: kind is "train" or "evaluation"; the columns of the other kind are null.
#: Losses are in nats per token, throughput in tokens per second, mfu a share of the peak.
METRICS_SCHEMA = pa.schema(
    [
        pa.field("step", pa.int64(), nullable=False),
        pa.field("tokens", pa.int64(), nullable=False),
        pa.field("time_ms", pa.int64(), nullable=False),
        pa.field("kind", pa.string(), nullable=False),
        ("train_loss", pa.float64()),
        ("learning_rate", pa.float64()),
        ("grad_norm", pa.float64()),
        ("tokens_per_s", pa.float64()),
        ("mfu", pa.float64()),
        ("val_loss", pa.float64()),
        ("val_loss_se", pa.float64()),  # as an estimate of the whole held-out split's
        ("val_perplexity", pa.float64()),
        ("val_bits_per_byte", pa.float64()),
    ]
)

#: The metrics of one spectrum, in the order of `analysis.spectrum.SpectrumMetrics`.
SPECTRUM_COLUMNS = (
    "hard_rank",
    "soft_rank",
    "hard_utilisation",
    "soft_utilisation",
    "concentration",
    "top1_share",
    "top10_share",
    "sui",
    "edim",
    "total_variance",
)

#: The tokens that a spectrum is measured on: all, or the most frequent, middling or rare tokens,
#: each a third of the occurrences.
ALL_TOKENS = "all"
BUCKETS = ("head", "mid", "tail")

#: site: "pre" or "post", before or after the non-linearity. layer: counted from 0. D: FFN width.
#: N: samples. method: "exact" has all D eigenvalues, descending; "lanczos" has quadrature nodes and
#: weights instead, where a weight is the number of eigenvalues at its node. error_estimate: bounds
#: the relative error of soft rank, concentration and eDim in 95 of 100 cases; 0 if exact.
#: js_divergence: between pre and post [nats]; null if only one site is recorded.
SPECTRA_SCHEMA = pa.schema(
    [
        pa.field("step", pa.int64(), nullable=False),
        pa.field("tokens", pa.int64(), nullable=False),
        pa.field("time_ms", pa.int64(), nullable=False),
        pa.field("site", pa.string(), nullable=False),
        pa.field("layer", pa.int32(), nullable=False),
        pa.field("bucket", pa.string(), nullable=False),
        pa.field("D", pa.int32(), nullable=False),
        pa.field("N", pa.int64(), nullable=False),
        ("n_over_d", pa.float64()),
        ("method", pa.string()),
        ("status", pa.string()),  # "well sampled" or "undersampled" (N/D below 10)
        ("eigenvalues", pa.list_(pa.float32())),
        ("nodes", pa.list_(pa.float64())),
        ("weights", pa.list_(pa.float64())),
        *[(name, pa.float64()) for name in SPECTRUM_COLUMNS],
        ("js_divergence", pa.float64()),
        ("error_estimate", pa.float64()),
    ]
)

SCHEMAS = {METRICS: METRICS_SCHEMA, SPECTRA: SPECTRA_SCHEMA}
#: The key of a row, which is also the order of its table.
ROW_KEYS = {METRICS: ("step", "kind"), SPECTRA: ("step", "site", "layer", "bucket")}
#: The value of a column in parts that are older than the column.
BEFORE_THE_COLUMN = {"bucket": ALL_TOKENS}
