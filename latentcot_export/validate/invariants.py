"""What must not change the result: order and neighbours of a batch, rows per pass, schedule, prompt or decoded, graph.

And three depths that are known beforehand: 1 everywhere is the stock model of `transformers` (what tau >= 1 gives where a
router is asked), max_steps everywhere is what tau = 0 gives, random ones are a replay. Which of them a recurrence has is
asked of its spec; the others are skipped, and say why. `worst` and `limit` are relative differences of a logit, and of a
quantised bundle at known depths the share of best logits that differ. Two runs are compared up to where their depths or
tokens part, because after that they think about different things; quantised ones as closely as others, as both are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from latentcot_export.spec import RecurrenceSpec

from .compare import choice_margin, decision_margin, distances
from .gates import by_share
from .packed import PackedEngine
from .report import Gate
from .runs import Engine, Ids, Oracle, Run, Truth
from .stock import StockModel
from .tally import Tally, skipped
from .tolerances import Tolerances, within


def agree(
    tally: Tally,
    sequence: int,
    reference: Run,
    other: Run,
    truth: Truth,
    limits: Tolerances,
    recurrence: RecurrenceSpec,
    near_ties: bool = True,
) -> None:
    """Counts where two runs of the graph differ on one sequence; the truth has followed the reference's depths."""
    count = min(len(reference.depths), len(other.depths))
    depth_differs = reference.depths[:count] != other.depths[:count]
    token_differs = np.zeros(count, bool)
    following = min(len(reference.tokens), len(other.tokens)) - 1
    token_differs[:following] = reference.tokens[1 : following + 1] != other.tokens[1 : following + 1]
    parts = depth_differs | token_differs
    if parts.any():
        count = int(parts.argmax()) + 1
    depth_differs, token_differs = depth_differs[:count], token_differs[:count]
    ours, theirs = other.logits[:count], reference.logits[:count]
    choice = ours.argmax(axis=1)
    choice_differs = token_differs | (choice != theirs.argmax(axis=1))
    if token_differs.any():  # the last one compared; what was chosen counts, not what the logits would choose
        choice[-1] = other.tokens[count]
    # where depths part, the decision after the shallower one's last step is the one to judge
    steps = np.minimum(reference.depths[:count], other.depths[:count])
    near_depth = decision_margin(steps, truth.next_reach[:count], recurrence) <= limits.depth_near_tie
    near_choice = ~choice_differs | (choice_margin(choice, truth.logits[:count]) <= limits.argmax_near_tie)
    # and its logits are of other thoughts, so they tell nothing
    far = np.where(depth_differs, 0.0, distances(ours, theirs.astype(np.float64)).logits)
    near_tie = np.where(depth_differs, near_depth, near_choice & (far <= limits.logits))
    wrong = depth_differs | choice_differs | ~(far <= limits.logits)
    tally.add(sequence, wrong, steps, far, near_tie if near_ties else None)


def fixed(tally: Tally, sequence: int, run: Run, depths: Ids, logits: np.ndarray, limits: Tolerances) -> None:
    """Counts where a run of known depths int64 `[n]` differs from them or from given logits float64 `[n, V]`."""
    far = distances(run.logits, logits).logits
    choice = run.logits.argmax(axis=1)
    depth_differs = run.depths != depths
    choice_differs = choice != logits.argmax(axis=1)
    near = choice_margin(choice, logits) <= limits.argmax_near_tie
    too_far = ~within(far, limits.logits)
    wrong = depth_differs | choice_differs | too_far
    far = np.where(depth_differs, np.inf, far)
    tally.add(
        sequence, wrong, np.minimum(run.depths, depths), far, near & ~too_far & ~depth_differs & (not limits.by_share)
    )


class Invariants:
    """The invariants of one bundle over a few sequences to read and a few prompts to continue."""

    def __init__(
        self,
        engine: Engine | PackedEngine,
        oracle: Oracle,
        stock: StockModel,
        limits: Tolerances,
        sequences: Sequence[Ids],
        prompts: Sequence[Ids],
        written: Sequence[Run],
        written_truth: Sequence[Truth],
        second: Callable[[], PackedEngine] | None = None,
        second_limits: Tolerances | None = None,
    ) -> None:
        """`written` continues `prompts` in one batch; `written_truth` has followed its depths.

        `second` runs pass.onnx, which computes in the same precision, or else within `second_limits`.
        """
        self.engine, self.oracle, self.stock, self.limits = engine, oracle, stock, limits
        self.between_runs = limits.between_runs
        self.sequences, self.prompts, self.written, self.written_truth = sequences, prompts, written, written_truth
        self.recurrence = oracle.recurrence
        self.new = len(written[0].tokens) - len(prompts[0])
        self.second, self.second_limits = second, second_limits

    def quick(self) -> Iterator[Gate]:
        """Those that the quick level checks, one at a time."""
        yield self.batch_neighbours()
        yield self.chunking((7,))
        yield self.prefill_decode()
        yield self.schedule()
        yield from self.pass_graph()
        yield self.stock_depth_1()

    def full(self) -> Iterator[Gate]:
        """All of them, one at a time."""
        yield self.batch_permutation()
        yield self.batch_neighbours()
        yield self.chunking((1, 7))
        yield self.prefill_decode()
        yield self.schedule()
        yield from self.pass_graph()
        yield self.stock_depth_1()
        yield self.full_depth()
        yield self.depth_replay()

    def batch_permutation(self) -> Gate:
        """Sequences in reversed order think and write the same."""
        runs = self.engine.write(self.prompts[::-1], self.new)[::-1]
        return self._same_writing("batch_permutation", runs, not self.limits.exact_batches)

    def batch_neighbours(self) -> Gate:
        """Every sequence alone thinks and writes what it does in a batch."""
        runs = [self.engine.write([prompt], self.new)[0] for prompt in self.prompts]
        return self._same_writing("batch_neighbours", runs, not self.limits.exact_batches)

    def schedule(self) -> Gate:
        """Lockstep, where a sequence waits for the deepest of the batch, gives what depth-continuous batching gives."""
        runs = self.engine.write(self.prompts, self.new, lockstep=True)
        return self._same_writing("schedule", runs)

    def pass_graph(self) -> Iterator[Gate]:
        """pass.onnx, the fixed form that a GPU runs, thinks and writes what the graph with the Loop does."""
        if self.second is not None:
            runs = self.second().write(self.prompts, self.new)
            near_ties = self.second_limits is not None or not self.limits.exact_batches
            yield self._same_writing("pass_graph", runs, near_ties, self.second_limits)

    def prefill_decode(self) -> Gate:
        """Reading what was written, many rows a pass, gives the depths and logits of writing it token by token."""
        if self.oracle.rounds is not None:
            reason = f"prompts refined in parallel (jacobi:{self.oracle.rounds}) only come near to what decoding gives"
            return skipped("prefill_decode", self.between_runs.logits, reason)
        return self._same_writing("prefill_decode", self.engine.read([run.tokens[:-1] for run in self.written]))

    def chunking(self, rows: Sequence[int]) -> Gate:
        """Prompts in passes of other numbers of rows a sequence than the usual one give the same."""
        if self.recurrence.token_major:
            reason = "a token starts when the one before it has halted: no pass has two rows of a sequence"
            if self.oracle.rounds is not None:
                reason = "a prompt that is refined in parallel is in every pass as a whole"
            return skipped("chunking", self.between_runs.logits, reason)
        tally = self._tally("chunking", self.between_runs)
        reference = self.engine.read(self.sequences)
        truths = self.oracle.follow(self.sequences, [run.depths for run in reference])
        for count in rows:
            for b, run in enumerate(self.engine.read(self.sequences, rows=count)):
                agree(tally, b, reference[b], run, truths[b], self.between_runs, self.recurrence)
        return tally.gate()

    def stock_depth_1(self) -> Gate:
        """Depth 1 everywhere is the stock model of `transformers` with the same weights, where that can be said."""
        if self.stock.absent is not None:
            return skipped("stock_depth_1", self.limits.logits, self.stock.absent)
        return self._fixed("stock_depth_1", [np.ones_like(each) for each in self.sequences], stock=True)

    def full_depth(self) -> Gate:
        """Every token thinks max_steps steps, as tau = 0 gives."""
        return self._fixed("full_depth", [np.full_like(each, self.recurrence.max_steps) for each in self.sequences])

    def depth_replay(self) -> Gate:
        """Random depths are followed to the letter."""
        random = np.random.default_rng(0)
        most = self.recurrence.max_steps
        depths = [random.integers(1, most + 1, len(each)) for each in self.sequences]
        # a token that is told to halt before its router gave any step a share reads out next to nothing: its logits tie
        ties = 1.0 if self.recurrence.readout == "shares" and self.recurrence.gated else None
        return self._fixed("depth_replay", depths, ties=ties)

    def _tally(self, name: str, limits: Tolerances, near_ties: bool = True) -> Tally:
        return Tally(name, limits.logits, limits.excused_share if near_ties else 0.0)

    def _same_writing(
        self, name: str, runs: Sequence[Run], near_ties: bool = True, limits: Tolerances | None = None
    ) -> Gate:
        limits = limits or self.between_runs
        # another precision beside quantised weights, of which no single token is judged
        shares = limits is self.second_limits and limits.by_share
        near_ties = near_ties and not shares
        tally = self._tally(name, limits, near_ties)
        for b, (run, written, truth) in enumerate(zip(runs, self.written, self.written_truth, strict=True)):
            agree(tally, b, written, run, truth, limits, self.recurrence, near_ties)
        return by_share(tally.gate(), limits.excused_share, "tokens and their depths") if shares else tally.gate()

    def _fixed(self, name: str, depths: Sequence[Ids], stock: bool = False, ties: float | None = None) -> Gate:
        """`ties` is the share of best logits that may be excused as near-ties, if not the usual one."""
        tally = self._tally(name, self.limits)
        tally.excused_share = tally.excused_share if ties is None else ties
        runs = self.engine.read(self.sequences, forced=depths)
        if stock:
            logits = [self.stock.read(each) for each in self.sequences]
        else:
            logits = [truth.logits for truth in self.oracle.read(self.sequences, depths)]
        for b, run in enumerate(runs):
            fixed(tally, b, run, depths[b], logits[b], self.limits)
        gate = tally.gate()
        return by_share(gate, self.limits.excused_share, "best logits") if self.limits.by_share else gate
