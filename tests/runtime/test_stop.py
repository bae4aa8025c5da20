"""What ends a sequence: length, stop tokens, stop texts; and that an ended one costs nothing more."""

from __future__ import annotations

import pytest

from latentcot_export import LatentCoTForCausalLM
from latentcot_export.runtime import GenerateOutput, SamplingParams
from latentcot_export.runtime.batch import Batch
from latentcot_export.runtime.sequence import Request, Sequence

PROMPT = "the and in"
SAMPLED = {"temperature": 1.5, "seed": 3}  # random weights repeat themselves when greedy


@pytest.fixture(scope="module")
def free(text_model: LatentCoTForCausalLM) -> GenerateOutput:
    """What comes out when nothing stops it."""
    out = text_model.generate(PROMPT, 60, ignore_eos=True, **SAMPLED)
    assert out.stop == ["length"] and len(set(out.ids[0])) > 15
    return out


def first_repeat_free(ids: list[int], least: int) -> int:
    """A place from `least` on whose token stands nowhere before it."""
    return next(i for i in range(least, len(ids)) if ids[i] not in ids[:i])


def check_cut(out: GenerateOutput, free: GenerateOutput, count: int, stop: str) -> None:
    assert out.stop == [stop]
    assert out.ids[0] == free.ids[0][:count]
    assert out.depths[0] == free.depths[0][: len(out.prompt_ids[0]) + count - 1]


def test_a_stop_token_ends_its_sequence_and_is_kept(text_model: LatentCoTForCausalLM, free: GenerateOutput) -> None:
    place = first_repeat_free(free.ids[0], 8)
    out = text_model.generate(PROMPT, 60, ignore_eos=True, stop_token_ids=free.ids[0][place], **SAMPLED)
    check_cut(out, free, place + 1, "eos")
    kept = text_model.generate(PROMPT, place, ignore_eos=True, **SAMPLED)
    assert out.text == kept.text, "the text leaves out the token that stopped it"


def test_eos_ends_a_sequence_unless_it_is_ignored(text_model: LatentCoTForCausalLM, free: GenerateOutput) -> None:
    assert text_model.manifest.eos_token_ids == (0,)
    seeds = list(range(40))
    out = text_model.generate([PROMPT] * 40, 60, temperature=3.0, seed=seeds)
    ended = [i for i in seeds if out.stop[i] == "eos"]
    assert 5 < len(ended) < 40
    for i in seeds:
        assert (out.ids[i][-1] == 0) == (i in ended) and 0 not in out.ids[i][:-1]
        assert len(out.ids[i]) == 60 or i in ended
        assert "<|end|>" not in (out.text[i] or "")
    ignored = text_model.generate(PROMPT, 60, temperature=3.0, seed=ended[0], ignore_eos=True)
    assert ignored.stop == ["length"] and len(ignored.ids[0]) == 60
    assert ignored.ids[0][: len(out.ids[ended[0]])] == out.ids[ended[0]]


def test_a_first_token_can_stop(text_model: LatentCoTForCausalLM, free: GenerateOutput) -> None:
    out = text_model.generate(PROMPT, 60, stop_token_ids=[free.ids[0][0]], **SAMPLED)
    check_cut(out, free, 1, "eos")
    assert out.text == [""]


def test_a_stop_text_ends_its_sequence_across_tokens(text_model: LatentCoTForCausalLM, free: GenerateOutput) -> None:
    whole = free.text[0] or ""
    shown = [event.text or "" for event in text_model.stream(PROMPT, 60, ignore_eos=True, **SAMPLED)]
    stops = [whole[start : start + 3] for start in range(5, len(whole) - 3) if "\ufffd" not in whole[start : start + 3]]
    assert len(stops) > 5
    for stop in stops[:8]:
        out = text_model.generate(PROMPT, 60, ignore_eos=True, stop=["not in there", stop], **SAMPLED)
        assert out.text[0] == whole[: whole.index(stop)]
        # kept up to the token that completed it, and not one more
        check_cut(out, free, next(n for n in range(61) if stop in "".join(shown[:n])), "text")


def test_a_stop_text_that_does_not_come_changes_nothing(text_model: LatentCoTForCausalLM, free: GenerateOutput) -> None:
    last = (free.text[0] or "")[-1]
    out = text_model.generate(PROMPT, 60, ignore_eos=True, stop=[last + "zzz", "Q" * 1000], **SAMPLED)
    assert out == free, "what was held back for it comes out in the end"
    assert text_model.generate(PROMPT, 60, ignore_eos=True, stop=None, stop_token_ids=None, **SAMPLED) == free


def test_a_stopped_sequence_costs_no_further_passes(text_model: LatentCoTForCausalLM, free: GenerateOutput) -> None:
    stop = (free.text[0] or "")[3:6]
    stream = text_model.stream(PROMPT, 400, ignore_eos=True, stop=stop, **SAMPLED)
    count = len(list(stream))
    assert stream.output().stop == ["text"] and count < 20
    # prompt, then bursts of 1, 2, 4, 8, 16, ... passes: at most one burst too many
    assert stream.passes < 2 * sum(stream.output().depths[0]) + 16
    # beside a neighbour that goes on: no pass that the neighbour alone would not take
    both = text_model.stream([PROMPT, "and"], [400, 60], ignore_eos=True, stop=stop, temperature=[1.5, 0.0], seed=3)
    for _ in both:
        pass
    single = text_model.stream("and", 60, ignore_eos=True, stop=stop)
    for _ in single:
        pass
    assert both.output().ids[1] == single.output().ids[0]
    assert both.passes <= single.passes + stream.passes


def test_each_sequence_ends_by_itself(text_model: LatentCoTForCausalLM, free: GenerateOutput) -> None:
    place = first_repeat_free(free.ids[0], 8)
    out = text_model.generate(
        [PROMPT, "and", PROMPT], [60, 25, 3], ignore_eos=True, stop_token_ids=[free.ids[0][place]], **SAMPLED
    )
    check_cut(GenerateOutput(*([column[0]] for column in vars(out).values())), free, place + 1, "eos")
    assert out.stop[2] == "length" and out.ids[2] == free.ids[0][:3]
    alone = text_model.generate("and", 25, ignore_eos=True, stop_token_ids=[free.ids[0][place]], **SAMPLED)
    assert (out.ids[1], out.stop[1]) == (alone.ids[0], alone.stop[0])


def test_every_pass_of_a_row_is_for_a_token_that_is_wanted(
    text_model: LatentCoTForCausalLM, free: GenerateOutput
) -> None:
    stop = (free.text[0] or "")[3:6]
    sampling = SamplingParams(**SAMPLED)
    prompt = tuple(free.prompt_ids[0])
    requests = [
        Request(prompt, 400, sampling, stop_texts=(stop,)),
        Request(prompt, 30, sampling),
        Request(prompt[:2], 40, sampling, stop_tokens=(free.ids[0][12],)),
        Request(prompt[:1], 35, SamplingParams()),
    ]
    sequences = [Sequence(i, request, text_model.tokenizer) for i, request in enumerate(requests)]
    batch = Batch(text_model.session, sequences)
    batch.prefill()
    while not batch.done:
        batch.advance(1)
    assert sequences[0].stop == "text" and len(sequences[0].ids) < 20
    # one pass a call: nothing is run that is not told in the depths, although the first had 400 tokens to go
    assert batch.live_rows == sum(sum(each.depths) for each in sequences)
