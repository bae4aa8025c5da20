"""Nobody's tokens or depths depend on who runs beside them: 64 prompts of latentcot-tiny in float32, int8 and int4.

Alone, all in one batch, in random orders of admission into few and many places, in a cache in which they must make room for
each other, with cancels in between: the same, exactly. Half of them are sampled, where one bit would turn a token.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from latentcot_export import Engine
from latentcot_export.bundle import open_bundle
from latentcot_export.export import export
from latentcot_export.runtime import GenerateOutput
from latentcot_export.runtime.native_session import NativeSession
from latentcot_export.runtime.native_tables import Counter
from latentcot_export.runtime.pass_session import PassSession
from tests.runtime.engines import check_empty, drain, state_of
from tests.runtime.replaying import Replaying

TINY = Path(__file__).resolve().parents[2] / "examples" / "checkpoints" / "latentcot-tiny"
COUNT = 64
NEW = (1, 24)


@dataclasses.dataclass
class Company:
    """One bundle, its requests, and what each gives when nobody else is there."""

    session: NativeSession | PassSession
    requests: list[dict[str, Any]]
    alone: list[GenerateOutput]

    def engine(self, **options: int) -> Engine:
        return Engine(self.session, None, **options)


# how its weights are stored, and which graph runs in company: that with the Loop, the fixed form, or that on a device that
# has tables of its own
@pytest.fixture(scope="module", params=["none", "int8", "int4", "none fixed", "int8 apart"])
def company(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Company]:
    quantize, _, form = request.param.partition(" ")
    folder = tmp_path_factory.mktemp("neighbours") / "bundle"
    bundle = export(TINY, folder, target="ort", quantize=quantize, max_seq_len=160, validate=False)
    draw = random.Random(11)
    vocabulary = bundle.manifest.model.vocab_size
    requests: list[dict[str, Any]] = [
        {
            "prompt": draw.choices(range(vocabulary), k=draw.choice((1, 2, 7, 20, 33, 120))),
            "max_new_tokens": draw.randint(*NEW),
            "temperature": draw.choice((0.0, 1.0)),
            "top_k": draw.choice((0, 50)),
            "seed": i,
            "stop_token_ids": draw.sample(range(vocabulary), 20),
        }
        for i in range(COUNT)
    ]
    one = Company(NativeSession(open_bundle(bundle.folder)), requests, [])
    with one.engine(max_batch=1) as engine:
        one.alone = [engine.submit(**each).result() for each in requests]
    if form:
        one.session = Replaying(bundle) if form == "apart" else PassSession(bundle, device="cpu")
    yield one


def test_the_sample_is_one(company: Company) -> None:
    depths = {depth for out in company.alone for depth in out.depths[0]}
    assert len(depths) >= 4 and {out.stop[0] for out in company.alone} == {"length", "eos"}
    assert len({tuple(out.ids[0]) for out in company.alone}) > COUNT - 10


def test_all_in_one_batch(company: Company) -> None:
    engine = company.engine(max_batch=COUNT)
    handles = [engine.submit(**each) for each in company.requests]
    assert [handle.result() for handle in handles] == company.alone
    state = state_of(engine)
    rows = state.counters[Counter.EXECUTED_ROWS]
    assert rows == sum(depth for out in company.alone for depth in out.depths[0])
    assert rows > 20 * state.passes, "they should have shared the passes"
    check_empty(engine)


# places, slots: some wait; all fit; a few at a time, in a cache that is too small for them
@pytest.mark.parametrize(("seed", "places", "slots"), [(1, 9, None), (2, COUNT, None), (3, 12, 500)])
def test_any_order_and_cancels(company: Company, seed: int, places: int, slots: int | None) -> None:
    options = {} if slots is None else {"cache_slots": slots}
    engine, draw = company.engine(max_batch=places, **options), random.Random(seed)
    handles, cancelled = {}, set()
    for i in draw.sample(range(COUNT), COUNT):
        handles[i] = engine.submit(**company.requests[i])
        for _ in range(draw.choice((0, 0, 0, 1, 3))):
            engine.step()
        if draw.random() < 0.2:
            victim = draw.choice([*handles])
            if not handles[victim].done:
                cancelled.add(victim)
            handles[victim].cancel()
    drain(engine)
    for i, handle in handles.items():
        out, alone = handle.result(), company.alone[i]
        if i not in cancelled:
            assert out == alone
            continue
        assert out.ids[0] == alone.ids[0][: len(out.ids[0])]
        assert all(a in (0, b) for a, b in zip(out.depths[0], alone.depths[0], strict=False))
    assert 3 < len(cancelled) < COUNT / 2
    made_room = any(handle.job.needs for handle in handles.values())
    assert made_room == (slots is not None)
    check_empty(engine)
