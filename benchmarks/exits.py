"""What an early exit saves and what it changes: Ouro at several thresholds, on random weights in its published layout.

    python benchmarks/exits.py [--thresholds 0.3,0.5,0.7,0.85,0.95,1] [-b 8] [-p 32] [-n 64] [-r 5] [--threads 2]

One checkpoint, its gate drawn so that exits spread over the loops; one bundle of target ort for each threshold, which take
turns run by run. Measured of decoding: mean depth, passes, tokens/s. And in float64, what tokens compute that follow one
whose loops were skipped: this engine's `newest` against the released code, which runs every loop. At 1.0 every loop runs.
Random weights say what the machine does, not what a trained gate would choose. Writes exits.json and exits.md.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import results
from common.results import Check, Spread

from latentcot_export.bench.measure import Sample, run_once, settle
from latentcot_export.bench.packed import PackedEngine
from latentcot_export.bench.workload import Batch
from latentcot_export.bundle import Bundle
from latentcot_export.checkpoint import random_tensors, write_checkpoint
from latentcot_export.checkpoint.families import find_family
from latentcot_export.errors import InputError, LatentCoTError
from latentcot_export.export import export
from latentcot_export.model import LatentCoT, step_major
from latentcot_export.spec import ModelSpec, RecurrenceSpec

FAMILY = "ouro"
SEED = 20260208  # of weights and prompts; any number would do, it only has to stay the same
HEAD_DIM = 64


@dataclasses.dataclass(frozen=True)
class Model:
    """The specs of one threshold and the weights that all share."""

    config: dict[str, Any]
    spec: ModelSpec
    recurrence: RecurrenceSpec
    tensors: dict[str, torch.Tensor]


def model_at(given: argparse.Namespace, threshold: float, way: str = "skip") -> Model:
    """`way` is skip or as_released. The logit of exiting has mean `--gate-bias` and deviation `--gate-spread`."""
    config = {
        **{"model_type": FAMILY, "vocab_size": given.vocabulary, "hidden_size": given.hidden},
        **{"intermediate_size": 11 * given.hidden // 4, "num_hidden_layers": given.layers, "rope_theta": 1e6},
        **{"num_attention_heads": given.hidden // HEAD_DIM, "max_position_embeddings": 2048, "rms_norm_eps": 1e-6},
        **{"total_ut_steps": given.loops, "early_exit_threshold": threshold, "latentcot_exit": way},
    }
    spec, recurrence = find_family(FAMILY, FAMILY).specs(config, FAMILY)
    tensors = random_tensors(spec, recurrence, SEED)
    if recurrence.gated:
        generator = torch.Generator().manual_seed(SEED)
        exit_gate = torch.randn(1, given.hidden, generator=generator) * given.gate_spread / given.hidden**0.5
        tensors |= {"router.weight": -exit_gate, "router.bias": torch.tensor([-given.gate_bias])}
    return Model(config, spec, recurrence, tensors)


def bundle_of(model: Model, place: Path) -> Bundle:
    """The exported checkpoint, validated."""
    checkpoint = write_checkpoint(place / "checkpoint", {**model.config, "dtype": "float32"}, model.tensors, force=True)
    return export(checkpoint, place / f"{model.config['early_exit_threshold']:g}", target="ort")


def speeds(bundles: dict[float, Bundle], given: argparse.Namespace) -> list[dict[str, Any]]:
    """One row a threshold: the bundles take turns."""
    length = given.prompt + given.new
    prompts = np.random.default_rng(SEED).integers(0, given.vocabulary, (given.batch, given.prompt))
    batch = Batch(prompts, np.zeros((given.batch, length + 1), np.int64))
    engines = {key: PackedEngine(bundle, "continuous", given.threads) for key, bundle in bundles.items()}
    samples: dict[float, list[Sample]] = {key: [] for key in engines}
    for turn in range(given.warmup + given.runs):
        print(f"run {turn + 1} of {given.warmup + given.runs}", file=sys.stderr)
        for key, engine in engines.items():
            settle(engine, batch)
            sample = run_once(engine, batch, given.new)
            if turn >= given.warmup:
                samples[key].append(sample)
    rows = []
    for key, runs in samples.items():
        last = runs[-1]
        depths = last.after_burst.depths[:, given.prompt : length]
        rows.append(
            {
                "threshold": key,
                "mean_depth": float(depths.mean()),
                "depth_shares": (np.bincount(depths.ravel(), minlength=given.loops + 1)[1:] / depths.size).tolist(),
                "passes": last.after_burst.passes - last.after_prompt.passes,
                "rows": last.after_burst.live_rows - last.after_prompt.live_rows,
                "tokens": given.batch * given.new,
                "tokens_per_s": Spread.of([given.batch * given.new / each.burst_seconds for each in runs]),
            }
        )
    for row in rows:
        row["over_all_loops"] = row["tokens_per_s"].median / rows[-1]["tokens_per_s"].median
    return rows


@torch.no_grad()
def difference(given: argparse.Namespace, threshold: float) -> dict[str, Any]:
    """Loops skipped against every loop run, in float64, over random ids; what is off is off behind an early exit."""
    print(f"threshold {threshold:g}: what it changes", file=sys.stderr)
    ids = torch.from_numpy(np.random.default_rng(SEED + 1).integers(0, given.vocabulary, (2, given.compared)))
    found = []
    for way in ("skip", "as_released"):
        model = model_at(given, threshold, way)
        oracle = LatentCoT.from_tensors(model.spec, model.recurrence, model.tensors, torch.float64)
        thoughts = step_major(oracle, ids)
        found.append((thoughts.depths, oracle.head(thoughts.mix)))
    (depths, logits), (exits, wanted) = found
    logs = torch.log_softmax(wanted, -1)
    return {
        "threshold": threshold,
        "tokens": ids.numel(),
        "mean_depth": float(depths.double().mean()),
        "released_mean_depth": float(exits.double().mean()),
        "same_exit": float((depths == exits).double().mean()),
        "same_best_logit": float((logits.argmax(-1) == wanted.argmax(-1)).double().mean()),
        "largest_difference": float((logits - wanted).abs().max()),
        "largest_logit": float(wanted.abs().max()),
        "mean_kl": max(0.0, float((logs.exp() * (logs - torch.log_softmax(logits, -1))).sum(-1).mean())),
    }


def checks(speed: list[dict[str, Any]], change: list[dict[str, Any]], loops: int) -> list[Check]:
    """A lower threshold never costs passes, and at 1.0 nothing is skipped or differs."""
    passes = [row["passes"] for row in speed]
    return [
        Check("mean depth at threshold 1.0", speed[-1]["mean_depth"], loops),
        Check("fewest passes / those at 1.0", min(passes) / passes[-1], 1.0, most=True),
        Check("falls of the passes as the threshold rises", sum(np.diff(passes) < 0), 0, most=True),
        Check("largest difference at threshold 1.0", change[-1]["largest_difference"], 1e-9, most=True),
    ]


def page(report: dict[str, Any], given: argparse.Namespace) -> str:
    """exits.md."""
    speed = [
        {
            "threshold": f"{row['threshold']:g}",
            "mean depth": f"{row['mean_depth']:.2f}",
            **{f"exit at {loop}": f"{100 * share:.0f} %" for loop, share in enumerate(row["depth_shares"], 1)},
            "passes": row["passes"],
            "rows": row["rows"],
            "t/s": f"{row['tokens_per_s']:.0f}",
            "over all loops": f"{row['over_all_loops']:.2f}",
        }
        for row in report["speed"]
    ]
    change = [
        {
            "threshold": f"{row['threshold']:g}",
            "mean depth": f"{row['mean_depth']:.2f}",
            "with all loops run": f"{row['released_mean_depth']:.2f}",
            "same exit": f"{100 * row['same_exit']:.1f} %",
            "same best logit": f"{100 * row['same_best_logit']:.1f} %",
            "largest difference of a logit": f"{row['largest_difference']:.2g}",
            "mean KL, nats": f"{row['mean_kl']:.2g}",
        }
        for row in report["difference"]
    ]
    return "\n\n".join(
        [
            results.head("Early exit: threshold against depth and speed", report),
            f"Random weights in Ouro's layout: hidden {given.hidden}, {given.layers} layers, {given.loops} loops, "
            f"vocabulary {given.vocabulary}, float32, target ort; the logit of exiting has mean "
            f"{given.gate_bias:g} and deviation {given.gate_spread:g}. Batch {given.batch}, prompts of {given.prompt} "
            f"random ids, {given.new} new tokens each, {given.runs} interleaved runs: median (least to most). Depths are "
            "those of the new tokens; passes end with the slowest sequence of the batch, rows are those that were run.",
            results.table(speed),
            "## What skipped loops change",
            f"float64, {report['difference'][0]['tokens']} random ids, largest logit "
            f"{report['difference'][-1]['largest_logit']:.1f}: tokens behind an early exit see its newest loop, where the "
            "released code has run the others too.",
            results.table(change),
            results.checks_table(report["checks"]),
        ]
    )


def parse_thresholds(text: str) -> list[float]:
    """`0.3,0.5` as rising numbers that end in 1. Errors: InputError."""
    try:
        found = sorted({float(word) for word in text.split(",")} | {1.0})
    except ValueError:
        found = []
    if not found or not 0.0 < found[0] <= found[-1] <= 1.0:
        raise InputError(
            f"--thresholds is {text!r}; give numbers above 0 and up to 1 with commas between, such as 0.5,1"
        )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--thresholds", default="0.3,0.5,0.7,0.85,0.95,1", help="1 is always among them")
    parser.add_argument("-b", dest="batch", type=int, default=8)
    parser.add_argument("-p", dest="prompt", type=int, default=32)
    parser.add_argument("-n", dest="new", type=int, default=64)
    parser.add_argument("-r", dest="runs", type=int, default=5)
    parser.add_argument("-w", dest="warmup", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--hidden", type=int, default=512, help=f"a multiple of {HEAD_DIM}")
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--loops", type=int, default=4)
    parser.add_argument("--vocabulary", type=int, default=8192)
    parser.add_argument("--gate-bias", type=float, default=-0.5)
    parser.add_argument("--gate-spread", type=float, default=1.5)
    parser.add_argument(
        "--compared", type=int, default=64, help="tokens of each of the two sequences that are compared"
    )
    parser.add_argument("-o", dest="out", type=Path, default=results.RESULTS)
    given = parser.parse_args()
    try:
        run(given)
    except LatentCoTError as error:
        results.refuse(error)


def run(given: argparse.Namespace) -> None:
    """Measures and publishes."""
    thresholds = parse_thresholds(given.thresholds)
    least = ("batch", "prompt", "new", "runs", "threads", "layers", "compared")
    if min(getattr(given, name) for name in least) < 1 or given.loops < 2 or given.warmup < 0:
        raise InputError(
            "-b, -p, -n, -r, --threads, --layers and --compared are at least 1, --loops 2; give larger ones"
        )
    if given.hidden < HEAD_DIM or given.hidden % HEAD_DIM:
        raise InputError(f"--hidden is {given.hidden}; give a multiple of {HEAD_DIM}")
    torch.set_num_threads(given.threads)
    report = results.begin(given.threads)
    with tempfile.TemporaryDirectory() as place:
        bundles = {}
        for threshold in thresholds:
            print(f"threshold {threshold:g}: exporting", file=sys.stderr)
            bundles[threshold] = bundle_of(model_at(given, threshold), Path(place))
        report["speed"] = speeds(bundles, given)
    report["difference"] = [difference(given, threshold) for threshold in thresholds]
    report["checks"] = checks(report["speed"], report["difference"], given.loops)
    results.publish("exits", given.out, report, page(report, given))


if __name__ == "__main__":
    main()
