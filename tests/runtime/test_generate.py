"""What `generate` returns is what the oracle says, alone, in any batch and in any order."""

from __future__ import annotations

import random
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from latentcot_export import LatentCoTForCausalLM
from latentcot_export.ops.choose_token import choose_reference
from latentcot_export.runtime import GenerateOutput
from latentcot_export.runtime.session import PROMPT_ROWS
from latentcot_export.runtime.state import SLOT_BLOCK
from tests.runtime.sample import Oracle
from tests.runtime.test_sampling import philox4x64

ROOT = Path(__file__).resolve().parents[2]


def prompt_of(seed: int, length: int) -> list[int]:
    return random.Random(seed).choices(range(96), k=length)


def check_shape(out: GenerateOutput, prompts: list[list[int]]) -> None:
    assert out.prompt_ids == prompts
    for i, prompt in enumerate(prompts):
        assert out.sequences[i] == prompt + out.ids[i]
        assert len(out.depths[i]) == len(prompt) + len(out.ids[i]) - 1
        assert set(out.depths[i]) <= {1, 2, 3, 4, 5}


def test_greedy_tokens_and_depths_of_unequal_prompts_are_the_oracles(
    model: LatentCoTForCausalLM, oracle: Oracle
) -> None:
    prompts = [prompt_of(i, length) for i, length in enumerate((1, 2, 7, 40))]
    new = [24, 1, 40, 9]
    out = model.generate(prompts, max_new_tokens=new)
    check_shape(out, prompts)
    assert [len(ids) for ids in out.ids] == new
    assert out.stop == ["length"] * 4 and out.text == [None] * 4
    for i, prompt in enumerate(prompts):
        oracle.check_greedy(out.sequences[i], len(prompt), out.depths[i])
    assert {depth for depths in out.depths for depth in depths} == {1, 2, 3, 4, 5}, "the sample must be ragged"


@pytest.mark.parametrize("length", [PROMPT_ROWS - 1, PROMPT_ROWS, PROMPT_ROWS + 1, 3 * PROMPT_ROWS + 5])
def test_long_prompts_and_growing_caches_are_exact(model: LatentCoTForCausalLM, oracle: Oracle, length: int) -> None:
    out = model.generate(prompt_of(length, length), max_new_tokens=120)
    assert sum(out.depths[0]) > 3 * SLOT_BLOCK, "the cache must have grown"
    oracle.check_greedy(out.sequences[0], length, out.depths[0])


def test_the_longest_sequence_that_the_bundle_holds(model: LatentCoTForCausalLM, oracle: Oracle) -> None:
    most = model.manifest.cache.max_seq_len
    out = model.generate([prompt_of(1, most - 1), prompt_of(2, 1)], max_new_tokens=[1, most - 1])
    assert [len(each) for each in out.sequences] == [most, most]
    for sequence, prompt, depths in zip(out.sequences, out.prompt_ids, out.depths, strict=True):
        oracle.check_greedy(sequence, len(prompt), depths)


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p", "seed"),
    [(1.0, 0, 1.0, 0), (0.7, 5, 1.0, 2**64 - 1), (1.5, 0, 0.8, 7), (3.0, 40, 0.95, 123), (1e-9, 0, 1.0, 4)],
)
def test_sampled_tokens_are_those_of_the_definition(
    model: LatentCoTForCausalLM, oracle: Oracle, temperature: float, top_k: int, top_p: float, seed: int
) -> None:
    prompt = prompt_of(9, 6)
    out = model.generate(prompt, 60, temperature=temperature, top_k=top_k, top_p=top_p, seed=seed)
    logits, depths = oracle.read(out.sequences[0][:-1])
    assert out.depths[0] == depths
    compared = 0
    for t in range(len(prompt), len(out.sequences[0])):
        u = (philox4x64(t + 1, seed) >> 40) * 2.0**-24
        wanted, probabilities = choose_reference(logits[t - 1], temperature, top_k, top_p, u)
        near = (probabilities.cumsum(0) - u).abs().min() < 1e-4  # float32 may fall on either side
        if not near:
            assert out.sequences[0][t] == wanted, f"token {t}"
            compared += 1
    assert compared > 40


REQUESTS: list[dict[str, Any]] = [
    {"prompt": prompt_of(20, 3), "new": 30, "temperature": 0.0, "top_k": 0, "top_p": 1.0, "seed": 1},
    {"prompt": prompt_of(21, 70), "new": 12, "temperature": 1.0, "top_k": 0, "top_p": 1.0, "seed": 2},
    {"prompt": prompt_of(22, 1), "new": 45, "temperature": 2.0, "top_k": 20, "top_p": 0.95, "seed": 2},
    {"prompt": prompt_of(22, 1), "new": 45, "temperature": 2.0, "top_k": 20, "top_p": 0.95, "seed": 3},
    {"prompt": prompt_of(23, 17), "new": 1, "temperature": 2.0, "top_k": 0, "top_p": 0.5, "seed": 2**63},
    {"prompt": prompt_of(20, 3), "new": 30, "temperature": 1.2, "top_k": 3, "top_p": 1.0, "seed": 1},
]


def run(model: LatentCoTForCausalLM, requests: list[dict[str, Any]]) -> list[tuple[list[int], list[int]]]:
    columns = {name: [each[name] for each in requests] for name in ("temperature", "top_k", "top_p", "seed")}
    out = model.generate([r["prompt"] for r in requests], [r["new"] for r in requests], stop_token_ids=[11], **columns)
    return list(zip(out.ids, out.depths, strict=True))


@pytest.fixture(scope="module")
def alone(model: LatentCoTForCausalLM) -> list[tuple[list[int], list[int]]]:
    return [run(model, [request])[0] for request in REQUESTS]


def test_seeds_matter(alone: list[tuple[list[int], list[int]]]) -> None:
    assert alone[2] != alone[3], "two seeds"
    assert alone[0] != alone[5], "greedy and sampled"


@settings(max_examples=15)
@given(st.lists(st.sampled_from(range(len(REQUESTS))), min_size=1, max_size=9))
def test_a_request_gives_the_same_alone_in_any_batch_and_in_any_order(
    model: LatentCoTForCausalLM, alone: list[tuple[list[int], list[int]]], chosen: list[int]
) -> None:
    assert run(model, [REQUESTS[i] for i in chosen]) == [alone[i] for i in chosen]


def test_lists_beyond_the_largest_batch_are_run_in_groups(
    model: LatentCoTForCausalLM, text_model: LatentCoTForCausalLM
) -> None:
    assert text_model.manifest.cache.max_batch == 3
    prompts = [prompt_of(i, 1 + i % 5) for i in range(8)]
    one_batch = model.generate(prompts, 10)
    groups = text_model.generate(prompts, 10, ignore_eos=True)
    assert (groups.sequences, groups.depths) == (one_batch.sequences, one_batch.depths)


def test_one_prompt_may_stand_alone_and_come_from_numpy(text_model: LatentCoTForCausalLM) -> None:
    listed = text_model.generate([[20, 21, 22]], 5)
    assert text_model.generate([20, 21, 22], 5) == listed
    assert text_model.generate(np.array([20, 21, 22]), np.int64(5)) == listed
    assert text_model.generate(np.array([[20, 21, 22]]), 5) == listed
    assert text_model.generate("tuv", 5) == listed
    both = text_model.generate(["tuv", (20, 21, 22)], 5)
    assert both.ids == listed.ids * 2


def test_without_a_number_of_tokens_there_are_64_or_what_fits(model: LatentCoTForCausalLM) -> None:
    most = model.manifest.cache.max_seq_len
    out = model.generate([[1], prompt_of(5, most - 7)])
    assert [len(ids) for ids in out.ids] == [64, 7]


def test_results_are_plain_numbers(model: LatentCoTForCausalLM) -> None:
    out = model.generate(np.array([1, 2]), 3)
    for numbers in (*out.sequences, *out.ids, *out.depths, *out.prompt_ids):
        assert all(type(each) is int for each in numbers)
    assert out.to_json() == {
        "schema_version": 1,
        "sequences": [
            {"prompt_ids": [1, 2], "ids": out.ids[0], "depths": out.depths[0], "text": None, "stop": "length"}
        ],
    }


def test_several_threads_may_use_one_model(model: LatentCoTForCausalLM) -> None:
    prompts = [prompt_of(i, 5) for i in range(4)]
    wanted = [model.generate(prompt, 30) for prompt in prompts]
    got: dict[int, GenerateOutput] = {}
    threads = [threading.Thread(target=lambda i=i: got.update({i: model.generate(prompts[i], 30)})) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert [got[i] for i in range(4)] == wanted


def test_nothing_of_the_export_side_is_imported(text_bundle: Path) -> None:
    code = (
        "import sys, latentcot_export\n"
        f"model = latentcot_export.LatentCoTForCausalLM.from_pretrained({str(text_bundle)!r})\n"
        "print(model.generate('the', 4).ids)\n"
        "print([name for name in ('torch', 'transformers', 'onnx', 'safetensors') if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[1] == "[]"


def test_random_weights_are_no_easy_case(model: LatentCoTForCausalLM, oracle: Oracle) -> None:
    """The comparison above must be able to fail: another token changes the depths and tokens that follow."""
    out = model.generate(prompt_of(3, 12), 20)
    changed = [(out.sequences[0][0] + 1) % 96, *out.sequences[0][1:]]
    with pytest.raises(AssertionError):
        oracle.check_greedy(changed, 12, out.depths[0])
    assert torch.is_tensor(oracle.read(changed)[0])
