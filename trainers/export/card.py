"""The model card (README.md) of an exported model: its trial, its loss, how to load it."""

import json
from dataclasses import dataclass
from typing import Any

from trainers.engine.engine import versions
from trainers.models.model_spec import ModelSpec
from trainers.spec import TrialSpec


@dataclass(frozen=True)
class Loss:
    """Held-out cross-entropy in nats per token, measured after `step` updates."""

    nats: float
    step: int


@dataclass(frozen=True)
class ModelCard:
    """The content of a model card.

    Attributes:
        spec: The trial.
        step: Updates that the exported weights have had.
        outcome: How the trial ended; None if it has not.
        loss: The newest held-out loss at or before `step`; None if there is none.
        model_class: Name of the class that opens the directory.
        stock: Whether that class is part of `transformers`.
        dtype: Type of the stored weights.
        parameters: Number of parameters.
        tokenizer: Whether the directory has a tokenizer.
    """

    spec: TrialSpec
    step: int
    outcome: str | None
    loss: Loss | None
    model_class: str
    stock: bool
    dtype: str
    parameters: int
    tokenizer: bool

    def markdown(self) -> str:
        """Return the card as Markdown, with the YAML header of the Hugging Face hub."""
        spec, training = self.spec, self.spec.training
        end = self.outcome or "unfinished"
        rows = {
            "trial": f"`{spec.id}`, replicate {spec.replicate}",
            "step": f"{self.step} of {training.steps} updates ({end}), "
            f"{self.step * training.batch_tokens:,} tokens",
            "held-out loss": _loss(self.loss, self.step),
            "semantics version": f"{spec.semantics_version}, of training and measuring",
            "class": f"`{self.model_class}`, {self.parameters:,} parameters, {self.dtype}",
            **{name: f"`{value}`" for name, value in spec.axes.items()},
            "corpus": f"`{spec.source.corpus.kind}`, fingerprint `{spec.data.corpus_fingerprint}`",
            "tokenizer": f"`{spec.source.tokenizer.kind}`, hash `{spec.data.tokenizer_hash}`",
            "widthlab": versions().get("widthlab", "not installed"),
        }
        table = "\n".join(f"| {name} | {text} |" for name, text in rows.items())
        load = "\n".join(loading_lines(".", self.stock, self.tokenizer))
        return CARD.format(
            id=spec.id,
            table=table,
            load=load,
            notes="\n".join(f"- {note}" for note in _notes(spec.model, self.stock)),
            model=_json(spec.model.model_dump(mode="json", exclude_defaults=True)),
            training=_json(training.model_dump(mode="json", exclude_defaults=True)),
        )


CARD = """---
library_name: transformers
pipeline_tag: text-generation
tags:
- widthlab
---

# widthlab trial {id}

A small language model from a widthlab study of feed-forward width, exported from a training
checkpoint. It is meant for research, and neither tuned nor filtered for any other use.

| | |
|---|---|
{table}

```python
{load}
```

{notes}

The settings of the model and its training that differ from widthlab's defaults:

```json
{model}
```

```json
{training}
```
"""


def loading_lines(place: str, stock: bool, tokenizer: bool) -> list[str]:
    """Return two lines of Python that open the directory `place`."""
    classes = "AutoModelForCausalLM, AutoTokenizer" if tokenizer else "AutoModelForCausalLM"
    remote = "" if stock else ", trust_remote_code=True"
    model = f"AutoModelForCausalLM.from_pretrained({place!r}{remote})"
    if not tokenizer:
        return [f"from transformers import {classes}", f"model = {model}"]
    # AutoTokenizer also reads the model's configuration, and asks without trust_remote_code.
    return [
        f"from transformers import {classes}",
        f"model, tokenizer = {model}, AutoTokenizer.from_pretrained({place!r}{remote})",
    ]


def _loss(loss: Loss | None, step: int) -> str:
    if loss is None:
        return "not measured"
    at = "" if loss.step == step else f", at step {loss.step}"
    return f"{loss.nats:.4f} nats per token{at}"


def _notes(model: ModelSpec, stock: bool) -> list[str]:
    notes = []
    if model.ffn_weight != "plain":
        notes.append(f"The weight geometry `{model.ffn_weight}` is multiplied into the weights.")
    if model.norm == "lns" and model.block is None:
        notes.append("LayerNorm scaling is multiplied into the norms: the model is Pre-LN.")
    if not stock:
        notes.append("Its source code is included; it needs torch and transformers 5 or newer.")
    notes.append(f"Its context is {model.context} tokens.")
    return notes


def _json(content: dict[str, Any]) -> str:
    return json.dumps(content, indent=1)
