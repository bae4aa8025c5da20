from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from latentcot_export.bench import Settings, parse_baselines, parse_batches
from latentcot_export.bench import workload as w
from latentcot_export.bundle import Bundle
from latentcot_export.errors import InputError

GOOD = Settings(prompt=8, new=4, batches=(1, 3))


def trace(folder: Path, text: str | bytes) -> Path:
    path = folder / "trace.jsonl"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def test_a_trace_repeats_its_lines_and_their_entries(tmp_path: Path) -> None:
    path = trace(tmp_path, "[1, 2, 3]\n[5]\n")
    depths = w.parse_depth(f"trace:{path}", 5)
    assert depths.table(3, 5).tolist() == [[1, 2, 3, 1, 2], [5, 5, 5, 5, 5], [1, 2, 3, 1, 2]]
    assert depths.table(1, 2).tolist() == [[1, 2]]


def test_a_trace_needs_no_newline_at_its_end_and_takes_those_of_windows(tmp_path: Path) -> None:
    assert w.read_trace(trace(tmp_path, "[1]\r\n[2, 1]"), 2) == ((1,), (2, 1))


def test_fixed_and_learned_depths() -> None:
    assert w.parse_depth("fixed:2", 5).table(2, 3).tolist() == [[2, 2, 2]] * 2
    assert w.parse_depth("learned", 5).table(2, 3).tolist() == [[0, 0, 0]] * 2


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("", 1),
        ("[1]\n\n[1]\n", 2),
        ("[1]\n[]\n", 2),
        ("[1]\n[1, 2\n", 2),
        ("[1, 0]\n", 1),
        ("[1]\n[2]\n[6]\n", 3),
        ("[-1]\n", 1),
        ("[1.0]\n", 1),
        ("[true]\n", 1),
        ('["2"]\n', 1),
        ("[[1]]\n", 1),
        ("3\n", 1),
        ("null\n", 1),
        ('{"depths": [1]}\n', 1),
        ("[1]\n[NaN]\n", 2),
        ("[1]\n[1" + "0" * 50 + "]\n", 2),
        ("[" * 5000, 1),
        (b"[1]\n\xff\xfe\n", 2),
    ],
)
def test_a_bad_trace_is_refused_with_its_line(tmp_path: Path, text: str | bytes, line: int) -> None:
    path = trace(tmp_path, text)
    with pytest.raises(InputError, match=rf"trace\.jsonl, line {line},.*; write one list of depths from 1 to 5 per"):
        w.read_trace(path, 5)


def test_an_oversized_trace_is_not_parsed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(w, "MAX_TRACE_BYTES", 8)
    with pytest.raises(InputError, match="larger than"):
        w.read_trace(trace(tmp_path, "[1, 1, 1]\n"), 5)


@pytest.mark.parametrize("name", ["absent.jsonl", "", "\0", "x" * 5000])
def test_a_trace_that_is_not_there(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        w.read_trace(tmp_path / name, 5)


@pytest.mark.parametrize(
    "text",
    [
        *("fixed:0", "fixed:6", "fixed:-1", "fixed:", "fixed:2.0", "fixed", "fixed:²", "fixed:" + "9" * 5000),
        *("", "Learned", "learned:1", "trace:", "trace", "7"),
    ],
)
def test_a_bad_depth_is_refused(text: str) -> None:
    with pytest.raises(InputError, match=r"--depth.*; give"):
        w.parse_depth(text, 5)


def test_lists_of_batches_and_baselines() -> None:
    assert parse_batches("1,8, 16") == (1, 8, 16)
    assert parse_baselines("") == ()
    assert parse_baselines("transformers,torch,torch") == ("transformers", "torch")


@pytest.mark.parametrize("text", ["", "0", "1,,2", "-1", "1.5", "x", "1;2", "²", "9" * 30, "1,"])
def test_bad_batches_are_refused(text: str) -> None:
    with pytest.raises(InputError, match="-b is"):
        parse_batches(text)


@pytest.mark.parametrize("text", ["jax", "torch;transformers", "Torch"])
def test_unknown_baselines_are_refused(text: str) -> None:
    with pytest.raises(
        InputError, match="unknown; give some of torch, torch-lockstep, transformers, with commas between"
    ):
        parse_baselines(text)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"prompt": -1}, "-p is -1"),
        ({"new": -1}, "-n is -1"),
        ({"prompt": 0, "new": 0}, "nothing is left"),
        ({"runs": 0}, "-r is 0"),
        ({"warmup": -1}, "-w is -1"),
        ({"threads": -1}, "--threads is -1"),
        ({"threads": 10**9}, "--threads is 1000000000"),
        ({"schedule": "eager"}, "--schedule is 'eager'"),
        ({"prompt": 509}, "need 513 positions and this bundle was exported for 512"),
        ({"prompt": 0, "new": 512}, "need 513 positions"),
        ({"batches": (1, 65)}, "-b 1,65 exceeds the 64 sequences"),
        ({"batches": ()}, "-b"),
    ],
)
def test_settings_that_cannot_be_run_are_refused(bundle: Bundle, change: dict[str, object], said: str) -> None:
    w.check(GOOD, bundle.manifest)
    with pytest.raises(InputError, match=said):
        w.check(dataclasses.replace(GOOD, **change), bundle.manifest)  # type: ignore[arg-type]


def test_the_command_holds_no_path() -> None:
    settings = dataclasses.replace(GOOD, depth="trace:/somewhere/else/t.jsonl", baselines=("torch",), threads=3)
    assert settings.command("b") == (
        "latentcot bench b -p 8 -n 4 -b 1,3 --depth trace:t.jsonl --schedule continuous --baseline torch "
        "-r 5 -w 1 --threads 3"
    )


def test_the_number_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert Settings().thread_count() == 3
    assert Settings(threads=2).thread_count() == 2
    for text in ("", "0", "-1", "many"):
        monkeypatch.setenv("OMP_NUM_THREADS", text)
        assert Settings().thread_count() == w.usable_cores() >= 1


def test_random_prompts_are_the_same_every_time(bundle: Bundle) -> None:
    first, again = (w.Workload(bundle, w.Depths()) for _ in range(2))
    assert first.source == "random ids"
    batch = first.batch(3, 8, 4)
    assert (batch.prompts == again.batch(3, 8, 4).prompts).all()
    assert batch.prompts.shape == (3, 8)
    assert batch.prompts.min() >= 0 and batch.prompts.max() < 96
    assert batch.tokens().shape == batch.forced_depth.shape == (3, 13)
    assert (batch.tokens()[:, 8:] == -1).all() and batch.new == 4


def test_prompts_from_text_are_spread_and_wrap_around(bundle: Bundle) -> None:
    workload = w.Workload(bundle, w.Depths())
    workload.ids = np.arange(10)
    assert workload.source == "heldout.txt"
    assert workload.batch(2, 6, 0).prompts.tolist() == [[0, 1, 2, 3, 4, 5], [5, 6, 7, 8, 9, 0]]
    assert workload.batch(1, 0, 2).prompts.tolist() == [[0]]


@pytest.mark.parametrize(
    ("prompt", "new", "short"), [(1, 0, 0), (8, 0, 0), (17, 0, 1), (40, 0, 2), (8, 1, 1), (8, 9, 2)]
)
def test_the_short_run_fits_the_batch(bundle: Bundle, prompt: int, new: int, short: int) -> None:
    batch = w.Workload(bundle, w.Depths()).batch(2, prompt, new).short()
    assert batch.prompts.shape[1] == min(prompt, 16)
    assert batch.new == short
