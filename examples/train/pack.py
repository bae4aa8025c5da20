"""Measures the trained model on held-out text and packs it as a checkpoint folder with its model card.

    python examples/train/pack.py --data build/train --run build/train/adaptive --twin build/train/twin --out CHECKPOINT

Losses are nats per token over windows of the trained length; standard errors are paired and taken over windows, because
tokens of a window are not independent. `--twin` may repeat: models of the same shape trained without latents.
"""

from __future__ import annotations

import argparse
import json
import math
import pathlib

import numpy as np
import torch
import torch.nn.functional as F

from latentcot_export.checkpoint import write_checkpoint
from latentcot_export.checkpoint.families import find_family
from latentcot_export.model import LatentCoT, step_major
from latentcot_export.spec import ModelSpec, RecurrenceSpec, from_json

EOS = 0


def load(run: pathlib.Path) -> tuple[LatentCoT, dict]:
    """The trained model of a run folder and its `train.json`."""
    facts = json.loads((run / "train.json").read_text())
    spec = from_json(ModelSpec, facts["model"], "model")
    recurrence = RecurrenceSpec(**facts["recurrence"])
    tensors = torch.load(run / "model.pt", weights_only=True, map_location="cpu")
    return LatentCoT.from_tensors(spec, recurrence, tensors, torch.float32), facts


@torch.no_grad()
def measure(model: LatentCoT, windows: torch.Tensor, depth: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Nats per token of every window `[W]`, and all depths; depth 0 is learned."""
    losses, depths = [], []
    for window in windows.split(16):
        tokens, targets = window[:, :-1], window[:, 1:]
        thoughts = step_major(model, tokens, torch.full_like(tokens, depth))
        nll = F.cross_entropy(model.head(thoughts.mix).flatten(0, 1), targets.flatten(), reduction="none")
        losses.append(nll.view(tokens.shape).mean(1).double().numpy())
        depths.append(thoughts.depths.flatten().numpy())
    return np.concatenate(losses), np.concatenate(depths)


def paired(better: np.ndarray, worse: np.ndarray) -> str:
    """Mean difference with its paired standard error over windows."""
    difference = worse - better
    error = difference.std(ddof=1) / math.sqrt(difference.size)
    # positive: the first one is better
    return f"{difference.mean():+.4f} +- {error:.4f} nats ({difference.mean() / error:.1f} standard errors)"


CARD = """\
---
license: psf-2.0
language: en
tags: [latentcot, adaptive-latent-cot]
---
# latentcot-tiny

A {parameters:.2f} M parameter Llama that thinks before each token: after every forward pass a linear router decides whether
the last hidden state is fed back for another one, at most {max_latents} times (arXiv 2602.08220). It is small so that
tests and demonstrations can use a model whose halting was learned. It writes something like Python documentation and
is good for nothing else.

## Data
The reStructuredText sources of the Python 3.11 documentation, change logs left out: {train_bytes:,} bytes, {train_tokens:,} tokens of a byte-level BPE
with {vocab} entries trained on the same text. Copyright Python Software Foundation, licence PSF-2.0; the weights,
tokenizer and `heldout.txt` derive from it and are shared under the same licence. One source file in twenty is held out
({heldout_tokens:,} tokens in `heldout.txt`), from the tokenizer too. sha256 of the corpus: `{sha256}`.

## Training
`examples/train/` holds the recipe. {layers} layers, hidden {hidden}, {heads} heads over {kv_heads} key head, {steps} updates of {batch} x {length} tokens
({tokens:,} tokens, {passes:,} (token, step) pairs), AdamW, bfloat16 autocast with a float32 gate, {device}, {minutes:.0f} minutes on {threads} thread(s),
torch {torch}. tau = {tau:g}, fixed before training; pruning on. Loss: cross-entropy of the exit-weighted mixture plus
lambda x mean of stop_gradient(p(true token))^{beta:g} x reach of the next step; lambda steered towards mean depth {wanted:g},
{weight:.2g} at the end. Trained on windows of {length} tokens; longer contexts run but were not trained.

## Held-out loss, nats per token
{windows} windows of {length} tokens.

| | loss | mean depth |
|---|---|---|
{rows}

- Learned depth against depth 1 forced: {against_one}.
- Learned depth against full depth forced: {against_full}, at {saved:.0f} % fewer (token, step) pairs.
{twins}
| depth | share of held-out tokens |
|---|---|
{histogram}
"""


def main() -> None:
    """Evaluates, prints the table, writes the checkpoint folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=pathlib.Path, required=True)
    parser.add_argument("--run", type=pathlib.Path, required=True)
    parser.add_argument("--twin", type=pathlib.Path, action="append", default=[])
    parser.add_argument("--out", type=pathlib.Path, required=True)
    args = parser.parse_args()
    model, facts = load(args.run)
    corpus = json.loads((args.data / "corpus.json").read_text())
    given = facts["arguments"]
    length = given["length"]
    data = np.load(args.data / "heldout.npy").astype(np.int64)
    count = (data.size - 1) // length
    windows = torch.from_numpy(np.stack([data[i * length : (i + 1) * length + 1] for i in range(count)]))

    learned, depths = measure(model, windows)
    one, _ = measure(model, windows, 1)
    full, _ = measure(model, windows, model.recurrence.max_steps)
    rows = [
        f"| depth 1 forced | {one.mean():.4f} | 1 |",
        f"| **learned** | **{learned.mean():.4f}** | **{depths.mean():.3f}** |",
        f"| full depth forced | {full.mean():.4f} | {model.recurrence.max_steps} |",
    ]
    twins = ""
    for folder in args.twin:
        twin, twin_facts = load(folder)
        loss, _ = measure(twin, windows)
        steps = twin_facts["arguments"]["steps"]
        budget = f"{steps} updates, {twin_facts['token_passes']:,} (token, step) pairs"
        rows.append(f"| twin trained at depth 1, {budget} | {loss.mean():.4f} | 1 |")
        twins += f"- Learned depth against the twin of {budget}: {paired(learned, loss)}.\n"
    share = np.bincount(depths, minlength=model.recurrence.max_steps + 1)[1:] / depths.size
    card = CARD.format(
        parameters=sum(p.numel() for p in model.parameters()) / 1e6,
        max_latents=model.recurrence.max_latents,
        layers=model.spec.num_layers,
        hidden=model.spec.hidden_size,
        heads=model.spec.num_heads,
        kv_heads=model.spec.num_kv_heads,
        vocab=model.spec.vocab_size,
        tau=model.recurrence.halt_threshold,
        windows=count,
        rows="\n".join(rows),
        against_one=paired(learned, one),
        against_full=paired(learned, full),
        twins=twins,
        saved=100 * (1 - depths.mean() / model.recurrence.max_steps),
        histogram="\n".join(f"| {i + 1} | {100 * s:.1f} % |" for i, s in enumerate(share)),
        minutes=facts["seconds"] / 60,
        passes=facts["token_passes"],
        weight=facts["lambda"],
        wanted=given["mean_depth"],
        **{key: facts[key] for key in ("tokens", "device", "threads", "torch")},
        **{key: given[key] for key in ("steps", "batch", "length", "beta")},
        **{key: corpus[key] for key in ("train_bytes", "train_tokens", "heldout_tokens", "sha256")},
    )
    config = find_family("adaptive_latent_cot", "pack.py").config(model.spec, model.recurrence)
    config |= {"model_type": "adaptive_latent_cot", "bos_token_id": EOS, "eos_token_id": EOS, "dtype": "float32"}
    config |= {"architectures": ["AdaptiveLatentCotForCausalLM"], "hidden_act": "silu"}
    tokenizer_config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|endoftext|>"}
    tokenizer_config |= {"bos_token": "<|endoftext|>", "model_max_length": model.spec.max_position_embeddings}
    extra = {
        "README.md": card.encode(),
        "tokenizer.json": (args.data / "tokenizer.json").read_bytes(),
        "tokenizer_config.json": (json.dumps(tokenizer_config, indent=2) + "\n").encode(),
        "generation_config.json": (json.dumps({"bos_token_id": EOS, "eos_token_id": EOS}, indent=2) + "\n").encode(),
        "heldout.txt": (args.data / "heldout.txt").read_bytes(),
    }
    write_checkpoint(args.out, config, dict(model.state_dict()), extra, force=True)
    print(card)


if __name__ == "__main__":
    main()
