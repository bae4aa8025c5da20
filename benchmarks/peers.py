"""SmolLM2-135M at depth 1 in this engine and in others: same prompts, same threads, one interleaved run.

    python benchmarks/peers.py [--kit build/peers] [-p 128] [-n 128] [--prompt 512] [-b 16] [-r 5] [--only NAME,NAME]

The kit is a folder with models/, bundles/ and environments/, see README.md. Every engine runs in a process of its own, in
its own environment. They take turns, run by run, with a sleep and a discarded run at each switch. Writes peers.json and
peers.md. Every ratio is of two runs that stood beside each other; what is missing is named and never guessed.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from common import results
from common.field import FIELD, OURS, SETUP, Contestant
from common.results import ROOT, Check, Spread
from common.worker import Worker
from tokenizers import Tokenizer

from latentcot_export.errors import InputError, LatentCoTError

TEXT = ROOT / "examples" / "checkpoints" / "latentcot-tiny" / "heldout.txt"
Samples = dict[str, list[dict[str, Any]]]


class Test:
    """One test: `batch` prompts of `prompt` tokens, then `new` tokens each; without new ones the prompts are timed."""

    def __init__(self, prompt: int, new: int, batch: int) -> None:
        self.prompt, self.new, self.batch = prompt, new, batch
        self.name = f"tg{new}" if new else f"pp{prompt}"
        self.label = f"{self.name}, batch {batch}"

    def prompts(self, ids: list[int]) -> list[list[int]]:
        """Windows of the text, evenly spread."""
        starts = [each * len(ids) // self.batch for each in range(self.batch)]
        return [[ids[(start + i) % len(ids)] for i in range(self.prompt)] for start in starts]

    def rate(self, sample: dict[str, Any]) -> float:
        """Tokens a second of the whole batch."""
        return self.batch * (self.new / sample["burst_seconds"] if self.new else self.prompt / sample["prompt_seconds"])


def measure(test: Test, workers: list[tuple[Contestant, Worker]], ids: list[int], runs: int) -> Samples:
    """`runs` samples of each engine, in turns, after one that is not counted."""
    taking = [each for each in workers if test.batch == 1 or each[0].batches]
    prompts = test.prompts(ids)
    for _, worker in taking:
        worker.ask(do="open", batch=test.batch, length=test.prompt + test.new + 1)
    samples: Samples = {contestant.name: [] for contestant, _ in taking}
    for turn in range(runs + 1):
        for contestant, worker in taking:
            sample = worker.run(prompts, test.new)
            if turn:
                samples[contestant.name].append(sample)
        print(f"{test.label}: {turn} of {runs}", file=sys.stderr)
    return samples


def ratios(test: Test, samples: Samples, ours: str, theirs: str) -> Spread | None:
    """How many times as fast ours was, round by round."""
    if not samples.get(ours) or not samples.get(theirs):
        return None
    pairs = zip(samples[ours], samples[theirs], strict=True)
    return Spread.of([test.rate(a) / test.rate(b) for a, b in pairs])


def rows_of(test: Test, samples: Samples) -> list[dict[str, Any]]:
    """The table of one test."""
    rows = []
    for contestant in FIELD:
        taken = samples.get(contestant.name)
        if not taken:
            continue
        speed = Spread.of([test.rate(sample) for sample in taken])
        ratio = ratios(test, samples, f"{OURS} {contestant.kind}", contestant.name)
        row = {"test": test.name, "batch": test.batch, "engine": contestant.engine, "weights": contestant.weights}
        row |= {"t/s": speed.median, "least to most": f"{speed.low:.1f} to {speed.high:.1f}"}
        shown = ratio is not None and contestant.engine != OURS
        rows.append({**row, f"{OURS} of that kind / it": f"{ratio:.3f}" if shown else "-"})
    return rows


def best(test: Test, samples: Samples, kind: str, names: tuple[str, ...]) -> float | None:
    """Ours of a kind over the fastest of some others, None while one of them is missing."""
    found = [ratios(test, samples, f"{OURS} {kind}", name) for name in names]
    there = [each.median for each in found if each is not None]
    return min(there) if len(there) == len(names) else None


def checks(tests: dict[str, tuple[Test, Samples]]) -> list[Check]:
    """What the project asks of itself."""
    everybody = {
        kind: tuple(each.name for each in FIELD if each.kind == kind and not each.engine.startswith(OURS))
        for kind in ("float32", "int8", "int4")
    }
    f32, q8, q4 = ("llama.cpp F32", "onnxruntime-genai float32"), "llama.cpp Q8_0", "llama.cpp Q4_1"
    asked = [
        ("one", "float32", f32, 0.95),
        ("one", "int8", (q8,), 1.0),
        ("one", "int4", ("onnxruntime-genai int4",), 0.9),
        ("one", "int4", (q4,), 1.0),
        ("prompt", "float32", f32[:1], 0.95),
        *(("batch", kind, names, 1.0) for kind, names in everybody.items()),
    ]
    found = []
    for key, kind, names, limit in asked:
        if key in tests:
            test, samples = tests[key]
            title = f"{test.label}: {kind} / {'the best of ' if len(names) > 1 else ''}{', '.join(names)}"
            found.append(Check(title, best(test, samples, kind, names), limit))
    return found


def agreement(test: Test, samples: Samples) -> list[dict[str, Any]]:
    """Whether the float32 engines chose the same tokens as ours, and every engine the same ones in all its runs."""
    first = samples.get(f"{OURS} float32")
    rows = []
    for contestant in FIELD:
        taken = samples.get(contestant.name)
        if not taken or not first or contestant.kind != "float32" or contestant.engine == OURS:
            continue
        pairs = list(zip(first[0]["tokens"], taken[0]["tokens"], strict=True))
        apart = [next((i for i, (a, b) in enumerate(zip(*pair, strict=True)) if a != b), None) for pair in pairs]
        there = [each for each in apart if each is not None]
        rows.append(
            {
                "test": test.label,
                "engine": contestant.engine,
                "sequences with the same tokens": f"{len(apart) - len(there)} of {len(apart)}",
                "first other token": str(min(there)) if there else "-",
                "same in all its runs": "yes" if all(s["tokens"] == taken[0]["tokens"] for s in taken) else "no",
            }
        )
    return rows


def page(report: dict[str, Any], tests: dict[str, tuple[Test, Samples]]) -> str:
    """peers.md."""
    parts = [results.head("Peers: SmolLM2-135M, depth 1", report)]
    parts += [results.table(rows_of(*each)) for each in tests.values()]
    parts.append(
        "Tokens a second of the whole batch, medians of the runs; ratios are medians over rounds, and their range."
    )
    if report["missing"]:
        parts += ["## Not measured", "\n".join(f"- {name}: {why}" for name, why in report["missing"].items())]
    parts.append(results.checks_table(report["checks"]))
    if report["agreement"]:
        parts += ["## Greedy tokens of the float32 engines beside ours", results.table(report["agreement"])]
    lines = [
        f"- {name}: {', '.join(f'{key} {value}' for key, value in each['versions'].items())}; {each['note']}"
        for name, each in report["engines"].items()
    ]
    return "\n\n".join([*parts, "## Engines", "\n".join(lines)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--kit", type=Path, default=ROOT / "build" / "peers")
    parser.add_argument("-p", dest="context", type=int, default=128, help="prompt before the new tokens")
    parser.add_argument("-n", dest="new", type=int, default=128, help="new tokens, 0 to skip")
    parser.add_argument("--prompt", type=int, default=512, help="prompt that is timed, 0 to skip")
    parser.add_argument("-b", dest="batch", type=int, default=16, help="sequences of the batched test, 0 to skip")
    parser.add_argument("-r", dest="runs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", default="", help="names of engines as the table prints them, with commas between")
    parser.add_argument("-o", dest="out", type=Path, default=results.RESULTS)
    given = parser.parse_args()
    try:
        run(given)
    except LatentCoTError as error:
        results.refuse(error)


def run(given: argparse.Namespace) -> None:
    """Measures and publishes."""
    if min(given.runs, given.threads, given.context) < 1 or min(given.new, given.prompt, given.batch) < 0:
        raise InputError("-r, --threads and -p are at least 1, the other numbers at least 0; give larger ones")
    chosen = [name.strip() for name in given.only.split(",") if name.strip()]
    unknown = [name for name in chosen if name not in {each.name for each in FIELD}]
    if unknown:
        raise InputError(f"--only {unknown[0]!r} is no engine; give one of {', '.join(each.name for each in FIELD)}")
    vocabulary = given.kit / "models" / "base" / "tokenizer.json"
    if not vocabulary.exists():
        raise InputError(f"{vocabulary} is missing; make it with python benchmarks/peer_models.py {given.kit}")
    ids = Tokenizer.from_file(str(vocabulary)).encode(TEXT.read_text("utf-8")).ids
    report = results.begin(given.threads)
    report |= {"missing": {}, "engines": {}, "setup": SETUP}
    wanted = {
        "one": Test(given.context, given.new, 1) if given.new else None,
        "prompt": Test(given.prompt, 0, 1) if given.prompt else None,
        "batch": Test(given.context, given.new, given.batch) if given.new and given.batch else None,
    }
    workers: list[tuple[Contestant, Worker]] = []
    try:
        for each in FIELD:
            if chosen and each.name not in chosen:
                continue
            reason = each.missing(given.kit)
            if reason is not None:
                report["missing"][each.name] = reason
                continue
            python, model = each.python(given.kit), given.kit / each.model
            worker = Worker(each.name, python, each.worker, each.words, model, given.threads)
            workers.append((each, worker))
            report["engines"][each.name] = {"versions": worker.versions, "note": worker.note}
        if not workers:
            raise InputError(f"no engine of {given.kit} can be run; see benchmarks/README.md for how to make the kit")
        tests = {
            key: (test, measure(test, workers, ids, given.runs)) for key, test in wanted.items() if test is not None
        }
    finally:
        for _, worker in workers:
            worker.close()
    report["rows"] = [row for each in tests.values() for row in rows_of(*each)]
    report["samples"] = {
        test.label: {name: [test.rate(sample) for sample in taken] for name, taken in samples.items()}
        for test, samples in tests.values()
    }
    report["agreement"] = [row for test, samples in tests.values() if test.new for row in agreement(test, samples)]
    report["checks"] = checks(tests)
    results.publish("peers", given.out, report, page(report, tests))


if __name__ == "__main__":
    main()
