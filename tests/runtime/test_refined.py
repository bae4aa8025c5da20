"""Prompts refined in parallel by the real engine: the oracle's tokens and logits in any company, and no slot left over."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from latentcot_export import Engine
from latentcot_export.bundle import Bundle
from latentcot_export.checkpoint import read_checkpoint
from latentcot_export.errors import InputError
from latentcot_export.export import export
from latentcot_export.model import LatentCoT, Thoughts, token_major
from latentcot_export.model.jacobi import refined
from latentcot_export.runtime import GenerateOutput
from latentcot_export.runtime.native_session import NativeSession
from latentcot_export.runtime.native_state import Column, Counter, NativeState, Status
from tests.families.sample import publish
from tests.runtime.engines import check_empty, drain

VOCAB, LENGTH = 30, 48
KINDS = {
    "llama": ("ponderlm2 on llama", 2),
    "gpt_neox": ("ponderlm2 on gpt_neox", 1),
    "fed": ("ponderlm2 interpolated", 3),
}


class Refined:
    """One bundle with the prefill jacobi:2 and the truth about its weights."""

    def __init__(self, folder: Path, sample: str, latents: int) -> None:
        publish(folder / "checkpoint", sample, num_latent_thoughts=latents)
        read = read_checkpoint(folder / "checkpoint")
        self.model = LatentCoT.from_tensors(read.model, read.recurrence, read.tensors, torch.float64)
        self.bundle: Bundle = export(
            folder / "checkpoint", folder / "bundle", target="ort", prefill="jacobi:2", validate=False
        )
        self.session = NativeSession(self.bundle, 1)
        self.latents = latents

    def state(self, places: int, rounds: int | None, **options: Any) -> NativeState:
        manifest = self.bundle.manifest
        slots = places * LENGTH * (self.latents + 1)
        given = {"slots": slots, "logit_positions": LENGTH, **options}
        return NativeState(manifest.model, manifest.recurrence, places=places, length=LENGTH, rounds=rounds, **given)

    def write(self, prompts: list[list[int]], new: int, rounds: int | None, **options: Any) -> NativeState:
        state = self.state(len(prompts), rounds)
        for prompt in prompts:
            state.add(prompt, len(prompt) + new - 1, **options)
        self.session.run(state, 100_000)
        check_done(state)
        return state

    def truth(self, tokens: list[int], prompt: int, rounds: int | None, forced: list[int] | None = None) -> Thoughts:
        given = torch.tensor([tokens])
        depths = None if forced is None else torch.tensor([forced + [0] * (len(tokens) - len(forced))])
        if rounds is None:
            return token_major(self.model, given, depths)
        return refined(self.model, given, rounds, torch.tensor([prompt]), depths)

    def held(self, state: NativeState, place: int, prompt: int, new: int, rounds: int | None, **forced: Any) -> None:
        """Tokens, depths and logits of a sequence that wrote greedily are the oracle's."""
        tokens = state.arrays["tokens"][place, : prompt + new].tolist()
        truth = self.truth(tokens[:-1], prompt, rounds, **forced)
        logits = self.model.head(truth.mix)[0]
        assert tokens[prompt:] == logits[prompt - 1 :].argmax(-1).tolist()
        assert state.arrays["depths"][place, : prompt + new - 1].tolist() == truth.depths[0].tolist()
        found = state.arrays["logits"][place, : prompt + new - 1]
        np.testing.assert_allclose(found, logits.numpy(), rtol=0, atol=3e-5 * float(logits.abs().max()))


@pytest.fixture(scope="module", params=KINDS)
def each(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Refined:
    return Refined(tmp_path_factory.mktemp("refined"), *KINDS[request.param])


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Refined:
    return Refined(tmp_path_factory.mktemp("refined"), *KINDS["llama"])


def check_done(state: NativeState) -> None:
    assert (state.sequences[:, Column.STATUS] == Status.DONE).all()
    assert state.live_rows == 0 and not state.refining
    assert sorted(state.arrays["free_slots"]) == list(range(state.slots)) and state.free_slots == state.slots


def check_owners(state: NativeState) -> None:
    """Every slot is free or in one cell of a running sequence."""
    held: list[int] = []
    for place in np.flatnonzero(state.sequences[:, Column.STATUS] == Status.RUNNING):
        cells = state.arrays["slots"][place, :, : state.sequences[place, Column.NEXT_POSITION]]
        held += cells[cells >= 0].tolist()
    free = state.arrays["free_slots"][: state.free_slots]
    assert sorted([*held, *free]) == list(range(state.slots))


def prompt_of(seed: int, length: int) -> list[int]:
    return random.Random(seed).choices(range(VOCAB), k=length)


@pytest.mark.parametrize("rounds", range(4))
def test_it_is_the_oracle(each: Refined, rounds: int) -> None:
    prompts = [prompt_of(i, length) for i, length in enumerate((1, 2, 7, 30))]
    state = each.write(prompts, 8, rounds)
    for place, prompt in enumerate(prompts):
        each.held(state, place, len(prompt), 8, rounds)
    # K + R + 1 passes for all of the prompts, then K + 1 for each token; every pass of a prompt runs all steps it has
    steps = each.latents + 1
    assert state.counters[Counter.PASSES] == each.latents + rounds + 1 + 7 * steps
    per_token = sum(range(1, steps)) + (rounds + 1) * steps
    assert state.counters[Counter.EXECUTED_ROWS] == per_token * 40 + 4 * 7 * steps
    assert state.counters[Counter.MOST_SLOTS] == (40 + 4 * 7) * steps


def test_enough_rounds_are_exact_and_few_are_not(each: Refined) -> None:
    prompts = [prompt_of(i, length) for i, length in enumerate((12, 5))]
    exact, enough, none = (each.write(prompts, 9, rounds) for rounds in (None, each.latents * 12, 0))
    for place, prompt in enumerate(prompts):
        each.held(exact, place, len(prompt), 9, None)
    scale = np.abs(exact.arrays["logits"]).max()
    np.testing.assert_allclose(enough.arrays["logits"], exact.arrays["logits"], rtol=0, atol=1e-4 * scale)
    assert (enough.arrays["tokens"] == exact.arrays["tokens"]).all()
    assert np.abs(none.arrays["logits"] - exact.arrays["logits"])[0, 11].max() > 1e-2 * scale


@pytest.mark.parametrize("depths", [[1] * 9, [1] * 9 + [2, 1], [3, 1, 2, 0, 1, 1, 2, 3, 1], [2] + [1] * 8])
def test_forced_depths(one: Refined, depths: list[int]) -> None:
    prompt = prompt_of(5, 9)
    state = one.write([prompt], 6, 1, forced_depth=depths)
    one.held(state, 0, 9, 6, 1, forced=depths)


def test_what_follows_the_prompt_may_be_known_and_is_run_exactly(one: Refined) -> None:
    """As a request that begins anew has it."""
    prompt = prompt_of(3, 6)
    wanted = one.write([prompt], 10, 1)
    tokens = wanted.arrays["tokens"][0, :11].tolist()
    state = one.state(1, 1)
    state.add(tokens, 15, prompt=6)
    one.session.run(state, 1000)
    check_done(state)
    assert (state.arrays["tokens"] == wanted.arrays["tokens"]).all()
    assert state.arrays["logits"].tobytes() == wanted.arrays["logits"].tobytes()


@pytest.mark.parametrize("passes", range(9))
def test_leaving_and_entering_at_any_pass_changes_no_bit_of_a_neighbour(one: Refined, passes: int) -> None:
    """Two of four leave in the middle of their prompt or behind it, another takes a place at once."""
    prompts = [prompt_of(i, length) for i, length in enumerate((9, 4, 12, 6, 7))]
    alone = [one.write([prompt], 6, 2) for prompt in prompts]
    state = one.state(4, 2)
    for prompt in prompts[:3]:
        state.add(prompt, len(prompt) + 5)
    one.session.run(state, 2)
    state.add(prompts[3], len(prompts[3]) + 5)
    for _ in range(passes):
        one.session.run(state, 1)
    state.remove(0)
    check_owners(state)
    state.truncate(2, 5)
    check_owners(state)
    assert state.sequences[2, Column.LIVE_ROWS] == (np.asarray(rows_of(state))[:, 0] == 2).sum()
    assert state.add(prompts[4], len(prompts[4]) + 5) == 0
    one.session.run(state, 1000)
    check_done(state)
    for place, i in ((0, 4), (1, 1), (3, 3)):
        n = len(prompts[i]) + 5
        assert state.arrays["tokens"][place, : n + 1].tolist() == alone[i].arrays["tokens"][0, : n + 1].tolist()
        assert state.arrays["logits"][place, :n].tobytes() == alone[i].arrays["logits"][0, :n].tobytes()
    # what was cut off does not matter to what stands before it
    assert state.arrays["logits"][2, :5].tobytes() == alone[2].arrays["logits"][0, :5].tobytes()
    assert state.arrays["tokens"][2, :12].tolist() == prompts[2]


def rows_of(state: NativeState) -> Any:
    rows = state.carried["rows"]
    return rows if isinstance(rows, np.ndarray) else rows.numpy()


@pytest.fixture(scope="module")
def requests() -> list[dict[str, Any]]:
    draw = random.Random(6)
    return [
        {
            "prompt": draw.choices(range(VOCAB), k=draw.choice((1, 3, 10, 30))),
            "max_new_tokens": draw.randint(1, 20),
            "temperature": draw.choice((0.0, 1.5)),
            "seed": i,
            "stop_token_ids": [3, 4],
        }
        for i in range(48)
    ]


@pytest.fixture(scope="module")
def alone(one: Refined, requests: list[dict[str, Any]]) -> list[GenerateOutput]:
    engine = Engine(one.session, None, max_batch=1)
    return [engine.submit(**each).result() for each in requests]


@pytest.mark.parametrize("slots", [None, 180])
def test_requests_in_any_order_with_cancels(
    one: Refined, requests: list[dict[str, Any]], alone: list[GenerateOutput], slots: int | None
) -> None:
    """In a large cache and in one where sequences must make room."""
    engine = Engine(one.session, None, max_batch=9, cache_slots=slots)
    draw, handles, cancelled = random.Random(slots or 1), {}, set()
    for i in draw.sample(range(48), 48):
        handles[i] = engine.submit(**requests[i])
        for _ in range(draw.randint(0, 3)):
            engine.step()
        if draw.random() < 0.5:
            victim = draw.choice([*handles])
            if not handles[victim].done:
                cancelled.add(victim)
            handles[victim].cancel()
    drain(engine)
    for i, handle in handles.items():
        out = handle.result()
        if i in cancelled:
            assert out.ids[0] == alone[i].ids[0][: len(out.ids[0])]
        else:
            assert out == alone[i]
    assert cancelled
    check_empty(engine)


def test_the_engine_refines_as_its_manifest_says(one: Refined) -> None:
    prompt = prompt_of(8, 20)
    engine = Engine(one.session, None)
    out = engine.submit(prompt, 12).result()
    wanted = one.write([prompt], 12, 2)
    assert out.sequences[0] == wanted.arrays["tokens"][0, :32].tolist() and out.depths[0] == [3] * 31
    assert engine.passes == 5 + 11 * 3 == wanted.passes


def test_a_prompt_that_can_never_have_its_slots_is_told_so(one: Refined) -> None:
    engine = Engine(one.session, None, cache_slots=29)
    assert len(engine.submit(prompt_of(1, 9), 1).result().ids[0]) == 1
    with pytest.raises(InputError, match="a prompt of 10 tokens needs 30 cache slots or more and this engine has 29"):
        engine.submit(prompt_of(1, 10), 1)
    check_empty(engine)
