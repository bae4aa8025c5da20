"""The emulation of CUDA that the kernels are tested on: what collectives give, and which mistakes it reports."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest

from tests.cuda.kernels import CudaFault, Kernels

SEEDS = range(6)


def shuffled(values: np.ndarray, lane: int) -> list[int]:
    """What lane `lane` of a full warp gets in each shuffle of the kernel `collectives` (CUDA programming guide)."""
    warp = values.tolist()

    def at(lanes: int) -> int:
        return warp[lanes]

    group = lane // 8 * 8
    return [
        at(warp[lane] % 32),
        at(group + (lane + 1) % 8),
        at(lane - 3 if lane >= 3 else lane),
        at(lane - 2 if lane - 2 >= group else lane),
        at(lane + 5 if lane + 5 < 32 else lane),
        at(lane + 1 if lane % 4 < 3 else lane),
        at(lane ^ 9),
    ]


@pytest.mark.parametrize("seed", SEEDS)
def test_collectives_of_full_warps(kernels: Kernels, seed: int) -> None:
    values = np.random.default_rng(seed).integers(0, 60, 96).astype(np.int32)
    found = np.full((96, 12), -1, np.int32)
    kernels.run("collectives", values, found, ctypes.c_uint(0xFFFFFFFF), 96, seed=seed)
    for thread in range(96):
        warp = values[thread // 32 * 32 :][:32]
        assert found[thread, :7].tolist() == shuffled(warp, thread % 32)
        ballot = sum(int(value & 1) << lane for lane, value in enumerate(warp))
        seven, odd = 7 in values, int((values & 1).sum())
        assert found[thread, 7:].view(np.uint32).tolist() == [
            *(ballot, int(7 in warp), 1, 2 * int(warp[thread % 32 ^ 1]) + 1, 2 * seven + (odd > 3)),
        ]


@pytest.mark.parametrize("seed", SEEDS)
def test_a_part_of_a_warp(kernels: Kernels, seed: int) -> None:
    """Lanes 0 to 15 alone, whose others have ended: every source that the kernel asks for lies among them."""
    values = (np.arange(16) % 4).astype(np.int32)
    found = np.full((32, 12), -1, np.int32)
    given = np.concatenate((values, values))
    with pytest.raises(CudaFault, match=r"it reads lane 16, which takes no part"):
        kernels.run("collectives", given, found, ctypes.c_uint(0xFFFF), 32, seed=seed)  # lane 11 reads 16
    # a block that ends within a warp: its full mask names lanes that there are not
    assert found[:, 9].max() == -1
    with pytest.raises(CudaFault, match="takes no part"):
        kernels.run("collectives", given, found, ctypes.c_uint(0xFFFFFFFF), 16, seed=seed)


def test_the_order_of_threads_shows_a_missing_barrier(kernels: Kernels) -> None:
    values = np.arange(64, dtype=np.int32)
    wrong = 0
    for seed in SEEDS:
        found = np.zeros(3 * 64 + 1, np.int32)
        kernels.run("turn", values, found, 3, 16, 2, 2, 1, seed=seed)
        np.testing.assert_array_equal(found[:-1].reshape(3, 64), np.tile(np.roll(values, -1), (3, 1)))
        assert found[-1] == 1 + 2 + 3
        kernels.run("turn", values, found, 3, 16, 2, 2, 0, seed=seed)
        wrong += not np.array_equal(found[:64], np.roll(values, -1))
    assert wrong == len(SEEDS)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(
    ("mistake", "words"),
    [
        (0, r"no thread can go on, thread 0 waits at the barrier of line \d+, thread 3 waits at the warp collective"),
        (1, "others of its block wait at the barrier of line"),
        (2, "lanes of one mask are in different collectives"),
        (3, "its own lane is not in the mask"),
        (4, "it reads lane 9, which takes no part"),
        (5, "no thread can go on"),
        (6, "byte 16 of shared memory was written, but the launch asked for 16"),
    ],
)
def test_mistakes_are_reported(kernels: Kernels, mistake: int, words: str, seed: int) -> None:
    found = np.zeros(64, np.int32)
    with pytest.raises(CudaFault, match=words):
        kernels.run("mistake", mistake, found, 64 if mistake < 5 else 32, ctypes.c_size_t(16), seed=seed)
    kernels.run("mistake", 99, found, 64, ctypes.c_size_t(0), seed=seed)  # the next launch knows nothing of it


def test_launches_that_a_gpu_refuses(kernels: Kernels) -> None:
    nothing = np.zeros(2048, np.int32)
    for blocks, threads in ((0, 32), (1, 0), (1, 1025)):
        with pytest.raises(CudaFault, match="cudaError 9"):
            kernels.run("turn", nothing, nothing, blocks, threads, 1, 1, 1)
    with pytest.raises(CudaFault, match="cudaError 1 "):
        kernels.run("mistake", 99, nothing, 32, ctypes.c_size_t(200_000))


def test_numbers_and_poison(kernels: Kernels) -> None:
    import torch

    bits = np.random.default_rng(1).integers(0, 1 << 32, 20_000, dtype=np.uint32).view(np.float32)
    small = np.ldexp(np.random.default_rng(2).standard_normal(20_000), np.arange(20_000) % 60 - 45)
    halves = np.arange(0, 0x7C00, dtype=np.uint16).view(np.float16).astype(np.float32)
    ties = halves[:-1] / 2 + halves[1:] / 2
    ends = np.array([65519.996, 65520, 3.39e38, 3.4e38, 1e-45, np.inf, -np.inf, np.nan, -0.0])
    values = np.concatenate((bits, small.astype(np.float32), halves, ties, ends.astype(np.float32)))
    found = np.empty((len(values), 2), np.float32)
    poison = np.zeros(1, np.uint32)
    kernels.run("numbers", values, len(values), found, poison)
    assert poison[0] == 0xFBFBFBFB
    wanted = torch.from_numpy(values)
    np.testing.assert_array_equal(found[:, 0], wanted.half().float().numpy())
    np.testing.assert_array_equal(found[:, 1], wanted.bfloat16().float().numpy())
