"""How large the pool of cache slots must be: what was in use at most, and a twentieth more, makes nobody wait for long."""

from __future__ import annotations

import math
import random
from pathlib import Path

import pytest

from latentcot_export import Engine
from latentcot_export.runtime.native_tables import Counter
from latentcot_export.runtime.scheduler import Scheduler
from tests.runtime.engines import check_empty, state_of


@pytest.fixture(scope="module")
def bundle(random_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from latentcot_export.export import export

    return export(random_checkpoint, tmp_path_factory.mktemp("pool") / "ort", target="ort", validate=False).folder


def workload(bundle: Path, slots: int | None) -> tuple[list[list[int]], int]:
    """New tokens of 60 requests, short and long ones mixed, 8 at a time, and the most slots in use."""
    draw = random.Random(3)
    with Engine.from_pretrained(bundle, max_batch=8, cache_slots=slots) as engine:
        handles = [
            engine.submit(
                draw.choices(range(96), k=draw.choice((2, 8, 30, 120))),
                draw.randint(1, 90),
                temperature=draw.choice((0.0, 1.2)),
                seed=i,
                ignore_eos=True,
            )
            for i in range(60)
        ]
        ids = [handle.result().ids[0] for handle in handles]
        most = int(state_of(engine).counters[Counter.MOST_SLOTS])
        check_empty(engine)
    return ids, most


def test_a_twentieth_more_than_the_peak_is_enough(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made_room = []
    make_room = Scheduler._make_room
    monkeypatch.setattr(Scheduler, "_make_room", lambda self: (made_room.append(1), make_room(self))[1])
    ids, peak = workload(bundle, None)
    assert peak > 1000, "the cache is a matter here"
    assert workload(bundle, math.ceil(1.05 * peak))[0] == ids
    assert not made_room, "nobody was sent back to the queue"
    # and where it does happen, it is seen here
    assert workload(bundle, peak // 2)[0] == ids
    assert made_room
