"""How far a prompt refined in parallel for R rounds is from the exact order, where a token reads all earlier thoughts.

    python benchmarks/jacobi.py [--stock FOLDER] [--rounds 16] [--length 64] [--sequences 4] [--threads 1]

Logits of model/jacobi.py against those of `token_major`, both in float64: largest difference, KL(exact || refined) in nats
a token, share of tokens with the same best logit; by R and by position. Models: random checkpoints of PonderLM-2 over Llama
and GPT-NeoX with 1, 2 and 3 thoughts; and, with --stock, a stock Llama checkpoint read as PonderLM-2 with one thought, over
held-out text. Writes jacobi.json and jacobi.md.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from common import results

from latentcot_export.checkpoint import Checkpoint, read_checkpoint, write_random_checkpoint
from latentcot_export.checkpoint.families import find_family
from latentcot_export.errors import InputError, LatentCoTError
from latentcot_export.model import LatentCoT, token_major
from latentcot_export.model.jacobi import refinements

FAMILY = "ponderlm2"
TEXT = results.ROOT / "examples/checkpoints/latentcot-tiny/heldout.txt"
# One row of logits is compared with another from here on as equal: float64 over some hundred sums.
EXACT = 1e-9
SIZES: dict[str, Any] = {
    **{"vocab_size": 512, "hidden_size": 128, "intermediate_size": 344, "num_hidden_layers": 4},
    **{"num_attention_heads": 4, "max_position_embeddings": 1024, "tie_word_embeddings": False},
}
KINDS: dict[str, dict[str, Any]] = {"llama": {"num_key_value_heads": 2}, "gpt_neox": {"rotary_pct": 0.25}}


def ranges(length: int) -> list[tuple[int, int]]:
    """Positions from 0, each range twice as long as the one before: [0, 8), [8, 24), ..."""
    edges = [0]
    while edges[-1] < length:
        edges.append(min(length, edges[-1] + 8 * 2 ** (len(edges) - 1)))
    return list(itertools.pairwise(edges))


def compare(name: str, read: Checkpoint, tokens: torch.Tensor, rounds: int) -> dict[str, Any]:
    """One model: what is off after R = 0 .. `rounds` rounds and after as many as make it exact, if that is not many."""
    model = LatentCoT.from_tensors(read.model, read.recurrence, read.tensors, torch.float64)
    latents, length = read.recurrence.max_latents, tokens.shape[1]
    print(f"{name}: exact", file=sys.stderr)
    exact = model.head(token_major(model, tokens).mix)
    enough = latents * (length - 1)
    last = enough if read.model.num_layers <= SIZES["num_hidden_layers"] else rounds
    wanted = {*range(min(rounds, 8) + 1), *(2**j for j in range(3, 12) if 2**j <= rounds), last}
    lines = []
    for done, mix in zip(range(last + 1), refinements(model, tokens), strict=False):
        if done in wanted:
            print(f"{name}: {done} rounds", file=sys.stderr)
            lines.append({"rounds": done, **distance(exact, model.head(mix), length)})
    return {
        "model": name,
        "latents": latents,
        "tokens": list(tokens.shape),
        "rounds_until_exact": enough,
        "largest_logit": float(exact.abs().max()),
        "lines": lines,
    }


def distance(exact: torch.Tensor, found: torch.Tensor, length: int) -> dict[str, Any]:
    """Of logits `[B, T, V]`: over all positions, and by range."""

    def of(begin: int, end: int) -> dict[str, Any]:
        wanted, got = exact[:, begin:end], found[:, begin:end]
        logs = torch.log_softmax(wanted, -1)
        kl = (logs.exp() * (logs - torch.log_softmax(got, -1))).sum(-1)
        return {
            "max_abs": float((wanted - got).abs().max()),
            "kl": max(0.0, float(kl.mean())),
            "same_argmax": float((wanted.argmax(-1) == got.argmax(-1)).double().mean()),
        }

    parts = [{"from": begin, "to": end, **of(begin, end)} for begin, end in ranges(length)]
    return {**of(0, length), "ranges": parts}


def shown(found: dict[str, Any]) -> list[dict[str, Any]]:
    """The lines of the table of one model."""
    return [
        {
            "R": line["rounds"],
            "max abs": f"{line['max_abs']:.1e}",
            "KL": f"{line['kl']:.1e}",
            "same argmax": f"{line['same_argmax']:.3f}",
            **{f"max abs at {part['from']}-{part['to'] - 1}": f"{part['max_abs']:.1e}" for part in line["ranges"]},
        }
        for line in found["lines"]
    ]


def page(report: dict[str, Any]) -> str:
    """jacobi.md."""
    parts = [
        results.head("Jacobi: a prompt refined in parallel against the exact order", report),
        "R refining rounds after K initial ones. Random weights: embeddings and thoughts of unit variance, as the scale "
        "sqrt(2.5 D) makes them of embeddings initialised with 0.02.",
    ]
    for found in report["models"]:
        batch, length = found["tokens"]
        parts.append(
            f"## {found['model']}, K = {found['latents']}\n\n{batch} sequences of {length} tokens, largest logit "
            f"{found['largest_logit']:.1f}, exact from R = {found['rounds_until_exact']} on.\n\n"
            + results.table(shown(found))
        )
    return "\n\n".join([*parts, results.checks_table(report["checks"])])


def checks(models: list[dict[str, Any]]) -> list[results.Check]:
    """R = K (T - 1) is exact wherever it was run, and four rounds are nearer than none."""
    asked = []
    for found in models:
        name, lines = f"{found['model']}, K = {found['latents']}", {line["rounds"]: line for line in found["lines"]}
        if found["rounds_until_exact"] in lines:
            last = lines[found["rounds_until_exact"]]["max_abs"]
            asked.append(results.Check(f"{name}: max abs after K (T - 1) rounds", last, EXACT, most=True))
        if 4 in lines:
            asked.append(
                results.Check(f"{name}: KL after 4 rounds / after 0", lines[4]["kl"] / lines[0]["kl"], 1.0, True)
            )
    return asked


def random_models(folder: Path, given: argparse.Namespace) -> list[dict[str, Any]]:
    """Random checkpoints in the published layout."""
    found = []
    for kind, keys in KINDS.items():
        for latents in (1, 2, 3):
            config = {**SIZES, **keys, "model_type": kind, "num_latent_thoughts": latents, "interpolation": False}
            specs = find_family(FAMILY, FAMILY).specs(config, FAMILY)
            read = write_random_checkpoint(folder / f"{kind}-{latents}", *specs, family=FAMILY)
            generator = torch.Generator().manual_seed(latents)
            tokens = torch.randint(0, 512, (given.sequences, given.length), generator=generator)
            found.append(compare(f"random, {kind}", read, tokens, given.rounds))
    return found


def stock_models(stock: Path, given: argparse.Namespace) -> list[dict[str, Any]]:
    """The stock checkpoint with one thought that nobody trained: a hidden state, and an expected embedding."""
    from tokenizers import Tokenizer

    base = read_checkpoint(stock)
    if not (stock / "tokenizer.json").is_file():
        raise InputError(f"{stock.name} has no tokenizer.json; copy it there from where the model was published")
    ids = Tokenizer.from_file(str(stock / "tokenizer.json")).encode(TEXT.read_text("utf-8")).ids
    if len(ids) < given.sequences * given.length:
        raise InputError(f"{TEXT.name} has {len(ids)} tokens; give a smaller --length or --sequences")
    tokens = torch.tensor(ids[: given.sequences * given.length]).reshape(given.sequences, given.length)
    found = []
    for what, interpolation in (("hidden state", False), ("expected embedding", True)):
        thinking = {"recurrent_model": True, "num_latent_thoughts": 1, "interpolation": interpolation}
        model, recurrence = find_family(FAMILY, FAMILY).specs({**base.config, **thinking}, FAMILY)
        read = dataclasses.replace(base, model=model, recurrence=recurrence)
        found.append(compare(f"{stock.name}, thought = {what}", read, tokens, given.rounds))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--stock", type=Path, help="stock Llama checkpoint with tokenizer.json")
    parser.add_argument("--rounds", type=int, default=16, help="most of the rounds that are listed")
    parser.add_argument("--length", type=int, default=64, help="tokens of a sequence")
    parser.add_argument("--sequences", type=int, default=4)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("-o", dest="out", type=Path, default=results.RESULTS)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    report = results.begin(given.threads)
    try:
        with tempfile.TemporaryDirectory() as place:
            models = random_models(Path(place), given)
            if given.stock is not None:
                models += stock_models(given.stock, given)
    except LatentCoTError as error:
        results.refuse(error)
        return
    report |= {"models": models, "checks": checks(models)}
    results.publish("jacobi", given.out, report, page(report))


if __name__ == "__main__":
    main()
