"""Loads exported models where widthlab is not installed, for test_export_elsewhere.

    python load_exported.py FOLDER

FOLDER holds one folder per model, `model` and `expected.safetensors` in each; what was found of
each is printed as one JSON object. Nothing of widthlab can be imported, or this fails.
"""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

CONTINUED = 6


def found(folder: Path) -> dict[str, object]:
    """What a model does, beside what it is expected to do."""
    expected = load_file(folder / "expected.safetensors")
    prompt = expected["prompt"]
    place = str(folder / "model")
    model = AutoModelForCausalLM.from_pretrained(place, trust_remote_code=True)
    tokenizer = AutoTokenizer.from_pretrained(place, trust_remote_code=True)
    with torch.no_grad():
        error = (model(expected["tokens"]).logits - expected["logits"]).abs().max()

    # Saved again by its new owner, it still carries what it needs.
    model.save_pretrained(folder / "again")
    again = AutoModelForCausalLM.from_pretrained(folder / "again", trust_remote_code=True)
    with torch.no_grad():
        same = torch.equal(again(expected["tokens"]).logits, model(expected["tokens"]).logits)

    texts = ["ten", "ten green"]
    alone = [continued(model, tokenizer([text], return_tensors="pt"))[0] for text in texts]
    together = continued(model, tokenizer(texts, return_tensors="pt", padding=True))
    return {
        "class": f"{type(model).__module__}.{type(model).__name__}",
        "error": float(error),
        "saved_again": same,
        "generated": continued(model, {"input_ids": prompt, "attention_mask": prompt >= 0}),
        "expected": expected["generated"].tolist(),
        "alone": [ids[-CONTINUED:] for ids in alone],
        "together": [ids[-CONTINUED:] for ids in together],
        "text": tokenizer.decode(tokenizer("ten green bottles")["input_ids"]),
        "eos": [tokenizer.eos_token_id, model.generation_config.eos_token_id],
    }


def continued(model, inputs) -> list[list[int]]:
    """Greedy continuations, of one length whatever they say."""
    settings = {"max_new_tokens": CONTINUED, "min_new_tokens": CONTINUED, "do_sample": False}
    return model.generate(**inputs, **settings).tolist()


if __name__ == "__main__":
    for name in ("orchestrator", "trainers", "analysis", "trialstore"):
        try:
            __import__(name)
        except ModuleNotFoundError:
            continue
        sys.exit(f"{name} can be imported here")
    models = sorted(path.parent for path in Path(sys.argv[1]).glob("*/model"))
    print(json.dumps({path.name: found(path) for path in models}))
