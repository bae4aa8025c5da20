"""Validation from beginning to end: what is read, by whom, and in which order it is judged."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator, Sequence

from latentcot_export.bundle import Bundle, open_bundle
from latentcot_export.checkpoint import read_checkpoint
from latentcot_export.errors import InputError
from latentcot_export.runtime.device import check_device

from .against import config_gate, rounded, weights_gate
from .gates import TeacherForced, tokens_gate
from .invariants import Invariants
from .packed import engine_of, most_positions, most_sequences, second_engine
from .report import Gate, Report
from .runs import Ids, Oracle, Run, Truth
from .stock import StockModel
from .text import Sequences, choose_sequences
from .tolerances import Tolerances, tolerances_for, tolerances_of_pass
from .weights import bundle_tensors, bundle_weights

LEVELS = ("quick", "full")
# by level: tokens to read, prompts to continue and by how much, sequences and their length for the invariants
_TOKENS = {"quick": 512, "full": 2048}
_PROMPTS = {"quick": (3, 9, 1), "full": (5, 33, 1, 80, 17, 64)}
_NEW = {"quick": 24, "full": 64}
_SAMPLES = {"quick": (2, 48), "full": (4, 96)}
# Float32 logits of one batch, and as many again in float64; the graph carries them from pass to pass.
_LOGIT_BYTES = 64 << 20
_MOST_SEQUENCES = 8
_LONGEST = 256
_MOST_TOKENS = 1 << 24

Progress = Callable[[str, int, int], None]
"""Called with (stage, done, total) when a stage begins and as it goes on."""


def validate(
    bundle: Bundle | str | os.PathLike[str],
    against: str | os.PathLike[str] | None = None,
    text: str | os.PathLike[str] | None = None,
    tokens: int | None = None,
    level: str = "quick",
    progress: Progress | None = None,
    device: str = "cpu",
) -> Report:
    """Runs every gate of `level` on a bundle and reports; a gate that fails does not raise.

    The oracle has the bundle's own weights, or those of the checkpoint folder `against`, rounded to the bundle's dtype;
    then the bundle's config and weights are held against it too. Of a quantised bundle these are what its codes stand
    for, or the float32 checkpoint, from which a share of depths and tokens may differ. `text` is a UTF-8 file to read
    instead of heldout.txt; `tokens` (2048 at level full, 512 at quick) are read teacher-forced, on `device`, "cpu" or
    "cuda". Nothing is written: see `Report.save`.
    Errors: InputError for unusable input; CheckFailed when the graph does not come to an end.
    """
    if level not in LEVELS:
        raise InputError(f"--level is {level!r}, it must be quick or full; choose one of these")
    wanted = _TOKENS[level] if tokens is None else tokens
    if not 2 <= wanted <= _MOST_TOKENS:
        raise InputError(f"--tokens is {wanted}, it must be from 2 to {_MOST_TOKENS}; choose such a number")
    say = progress or (lambda _stage, _done, _total: None)
    say("opening the bundle", 0, 1)
    opened = bundle if isinstance(bundle, Bundle) else open_bundle(bundle)
    check_device(opened, device, logits=True)
    return _Validation(opened, against, text, wanted, level, say, device).report()


class _Validation:
    """One run of `validate`: what it needs, gathered once."""

    def __init__(
        self,
        bundle: Bundle,
        against: str | os.PathLike[str] | None,
        text: str | os.PathLike[str] | None,
        tokens: int,
        level: str,
        say: Progress,
        device: str,
    ) -> None:
        self.bundle, self.level, self.say, self.device = bundle, level, say, device
        manifest = bundle.manifest
        self.limits: Tolerances = tolerances_for(manifest, against is None, device)
        if device != "cpu":  # the number of rows decides how a GPU sums a product
            self.limits = dataclasses.replace(self.limits, exact_batches=False)
        self.checkpoint = None if against is None else read_checkpoint(against, manifest.family)
        self.checkpoint_name = manifest.source["name"]
        self.own = bundle_tensors(bundle)
        self.checks: list[Gate] = []
        self.model, self.recurrence, self.tensors = manifest.model, manifest.recurrence, self.own
        self.comparable = True
        if self.checkpoint is not None:
            self._hold_against()
        longest = min(_LONGEST, max(16, _LOGIT_BYTES // (4 * manifest.model.vocab_size)))
        self.longest = min(longest, manifest.cache.max_seq_len, most_positions(manifest))
        self.sequences: Sequences = choose_sequences(bundle, self.checkpoint, text, tokens, self.longest)

    def _hold_against(self) -> None:
        """The gates on config and weights; from here on the checkpoint is the truth."""
        assert self.checkpoint is not None
        checkpoint, manifest = self.checkpoint, self.bundle.manifest
        self.checkpoint_name = checkpoint.folder.resolve().name or "checkpoint"
        self.checks.append(config_gate(manifest, checkpoint))
        self.tensors = rounded(checkpoint, manifest)
        # the same tensors and as many steps: else the two cannot even be run on the same tokens
        self.comparable = (
            {name: tensor.shape for name, tensor in self.tensors.items()}
            == {name: tensor.shape for name, tensor in self.own.items()}
        ) and checkpoint.recurrence.max_steps == manifest.recurrence.max_steps
        if self.comparable:
            self.checks.append(weights_gate(bundle_weights(self.bundle), self.tensors))
            self.model, self.recurrence = checkpoint.model, checkpoint.recurrence

    def report(self) -> Report:
        """Runs the gates. A bundle of another model than the checkpoint's fails at its config and is not run."""
        histogram: tuple[int, ...] = (0,) * self.bundle.manifest.recurrence.max_steps
        gates, tokens = self.checks, 0
        if self.comparable:
            self.say("loading the graph", 0, 1)
            self.engine = engine_of(self.bundle, self.device)
            self.oracle = Oracle(self.model, self.recurrence, self.tensors, self.bundle.manifest.rounds)
            forced = self._teacher_forced()
            depth, argmax, logits, perplexity = forced.gates()
            written, invariants = self._written_and_invariants()
            gates = [*gates, depth, argmax, written, logits, perplexity, *invariants]
            histogram, tokens = tuple(int(n) for n in forced.histogram), self.sequences.tokens
        manifest = self.bundle.manifest
        return Report(
            bundle=self.bundle.folder.resolve().name,
            checkpoint=self.checkpoint_name,
            target=manifest.target,
            dtype=manifest.dtype,
            prefill=manifest.prefill,
            quantize=manifest.quantize,
            level=self.level,
            source=self.sequences.source,
            tokens=tokens,
            gates=tuple(gates),
            depth_histogram=histogram,
            device=self.device,
        )

    def _teacher_forced(self) -> TeacherForced:
        forced = TeacherForced(self.limits, self.recurrence, self.sequences.real_text)
        total = len(self.sequences.ids)
        for start, batch in self._batches(self.sequences.ids):
            self.say("reading against the oracle", start, total)
            runs = self.engine.read(batch)
            truths = self.oracle.follow(batch, [run.depths for run in runs])
            for b, (run, truth) in enumerate(zip(runs, truths, strict=True)):
                forced.add(start + b, run, truth)
        return forced

    def _batches(self, ids: Sequence[Ids]) -> Iterator[tuple[int, Sequence[Ids]]]:
        """(index of the first, sequences) of batches whose logits fit into _LOGIT_BYTES, at least one sequence each."""
        fit = _LOGIT_BYTES // (4 * self.model.vocab_size * self.longest)
        size = max(1, min(_MOST_SEQUENCES, most_sequences(self.bundle.manifest, self.longest), fit))
        for start in range(0, len(ids), size):
            yield start, ids[start : start + size]

    def _written_and_invariants(self) -> tuple[Gate, list[Gate]]:
        """Gate 3, and the invariants, which compare with what it wrote."""
        self.say("writing against the oracle", 0, 1)
        prompts, new = self._prompts()
        runs: list[Run] = self.engine.write(prompts, new)
        truths: list[Truth] = self.oracle.follow(
            [run.tokens[:-1] for run in runs], [run.depths for run in runs], [len(prompt) for prompt in prompts]
        )
        written = tokens_gate(prompts, runs, truths, self.limits, self.recurrence)
        count, length = _SAMPLES[self.level]
        count = min(count, most_sequences(self.bundle.manifest, min(length, self.longest)))
        sample = [each[:length] for each in self.sequences.ids[:count]]
        stock = StockModel(self.model, self.recurrence, self.tensors)
        invariants = Invariants(
            *(self.engine, self.oracle, stock, self.limits, sample, prompts, runs, truths),
            second_engine(self.bundle, self.device),
            tolerances_of_pass(self.bundle.manifest),
        )
        checks = invariants.quick() if self.level == "quick" else invariants.full()
        gates: list[Gate] = []
        for gate in checks:
            gates.append(gate)
            self.say("checking invariants", len(gates), len(gates) + 1)
        return written, gates

    def _prompts(self) -> tuple[list[Ids], int]:
        """Beginnings of the sequences, unequally long, and how many tokens to append: together at most `longest`."""
        new = max(1, min(_NEW[self.level], self.longest // 2))
        most = max(1, min(self.longest - new, max(_PROMPTS[self.level])))
        # two at least: one alone has no neighbour
        fit = max(2, _LOGIT_BYTES // (4 * self.model.vocab_size * (most + new)))
        lengths = _PROMPTS[self.level][: min(most_sequences(self.bundle.manifest, most + new), fit)]
        ids = self.sequences.ids
        prompts = [ids[b % len(ids)][: min(length, most)] for b, length in enumerate(lengths)]
        return prompts, new
