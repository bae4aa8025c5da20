"""The op library in ONNX Runtime: it loads, every op runs, and what is wrong comes back as one sentence."""

from __future__ import annotations

import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

from latentcot_export.errors import InputError
from latentcot_export.runtime import library
from latentcot_export.runtime.library import library_path
from tests.plugins import sample

OPS = list(sample.INPUTS)
NARROWED = {"qkv", "cos", "sin", "rows", "z", "gate_logits", "reach", "mix", "logits", "x", "residual", "gate_up"}


def run(op: str, values: dict[str, np.ndarray], threads: int = 1, **attributes: Any) -> dict[str, np.ndarray]:
    """Outputs by name."""
    made = sample.session(sample.model(op, values, **attributes), library_path(), threads)
    return dict(zip(sample.OUTPUTS[op], made.run(None, values), strict=True))


def refusal(op: str, values: dict[str, np.ndarray], **attributes: Any) -> str:
    """The sentence that a call fails with; nothing may have been written."""
    before = {name: value.copy() for name, value in values.items()}
    with pytest.raises(Exception, match=op) as told:
        run(op, values, **attributes)
    for name, value in values.items():
        assert np.array_equal(value, before[name]), f"{name} was changed"
    text = str(told.value)
    return text[text.rindex(f"{op}: ") :]


def test_a_missing_library_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "LIBRARY", "liblatentcot_other.so")
    with pytest.raises(InputError, match="pip install"):
        library_path()


def test_only_the_registration_and_the_devices_are_exported() -> None:
    nm = shutil.which("nm")
    if nm is None:
        pytest.skip("nm of the binutils is not installed")
    listed = subprocess.run([nm, "-D", "--defined-only", library_path()], capture_output=True, text=True, check=True)
    assert [line.split()[-1] for line in listed.stdout.splitlines()] == ["RegisterCustomOps", "latentcot_devices"]


def test_attention_writes_the_cache_in_place() -> None:
    values = sample.feeds("RaggedAttention")
    out = run("RaggedAttention", values)["out"]
    assert out.shape == (2, sample.HEADS * sample.HEAD_DIM)
    # layer 1 only, the two rows' slots only; what position 1 sees at step 1 is itself and the empty slot of position 0
    touched = np.flatnonzero(np.abs(values["cache"]).sum(axis=(3, 4)))
    assert touched.tolist() == [sample.SLOTS * 2 + 6, sample.SLOTS * 2 + 7, sample.SLOTS * 3 + 6, sample.SLOTS * 3 + 7]
    assert not values["cache"][..., sample.HEAD_DIM :].any()
    of_row = values["qkv"].reshape(2, -1, sample.HEAD_DIM)[:, -sample.KV_HEADS :]
    assert np.array_equal(values["cache"][1, 1, [7, 6], :, : sample.HEAD_DIM], of_row)


def test_attention_takes_a_half_precision_cache() -> None:
    values, half = sample.feeds("RaggedAttention"), sample.feeds("RaggedAttention")
    half["cache"] = half["cache"].astype(np.float16)
    wanted = run("RaggedAttention", values)["out"]
    np.testing.assert_allclose(run("RaggedAttention", half)["out"], wanted, rtol=0, atol=4e-3)
    np.testing.assert_allclose(half["cache"], values["cache"], rtol=1e-3, atol=1e-3)


def test_halt_compacts_and_counts() -> None:
    values = sample.feeds("RaggedHalt")
    out = run("RaggedHalt", values)
    assert out["next_rows"].tolist() == [[0, 0, 3, -1]]
    assert np.array_equal(out["next_latent"], values["z"][:1])
    next_reach = np.float32(0.5 / (1 + np.exp(-3)))
    np.testing.assert_allclose(out["next_reach"], [next_reach], rtol=1e-6)
    np.testing.assert_allclose(out["next_mix"], values["mix"] + (0.5 - next_reach) * values["z"][:1], rtol=1e-5)
    assert out["head_rows"].shape == (0, 4) and out["head_mix"].shape == (0, sample.HIDDEN)
    assert values["depths"][0].tolist() == [0, 1, 0, 0, 0, 0]
    assert values["sequences"][0, 5] == 1
    assert values["counters"][[2, 3, 7]].tolist() == [1, 2, 0]


def test_halt_without_a_router() -> None:
    values = sample.feeds("RaggedHalt")
    values["rows"] = np.array([[0, 0, 1, 5], [0, 1, 1, 6]], np.int32)
    values["reach"], values["mix"] = np.zeros(0, np.float32), np.zeros((0, sample.HIDDEN), np.float32)
    data = sample.model("RaggedHalt", values, left_out=("gate_logits",), max_steps=1)
    del values["gate_logits"]
    sample.session(data, library_path()).run(None, values)
    assert values["depths"][0].tolist() == [1, 1, 0, 0, 0, 0]


def test_choose_writes_the_token() -> None:
    values = sample.feeds("ChooseToken")
    chosen = run("ChooseToken", values)["chosen"]
    assert chosen.tolist() == [values["logits"][0].argmax()]
    assert values["tokens"][0, 3] == chosen[0]
    assert values["sequences"][0, 7] == 4


def test_advance_gives_slots_and_starts() -> None:
    values = sample.feeds("RaggedAdvance")
    out = run("RaggedAdvance", values)
    assert out["rows_out"].tolist() == [[0, 0, 3, 4], [0, 2, 1, 3]]
    assert out["fresh_out"].tolist() == [4]
    assert out["again"].shape == () and out["again"]
    assert values["slots"][0, 2, 0] == 4 and values["slots"][0, 0, 2] == 3
    assert values["counters"][0] == 3


@pytest.mark.parametrize("op", OPS)
def test_nothing_to_do_is_fine(op: str) -> None:
    values = sample.feeds(op)
    for name in NARROWED & set(values):
        if (op, name) != ("RaggedHalt", "logits"):
            values[name] = values[name][:0]
    if "sequences" in values:
        values["sequences"][0, 5] = 0
    out = run(op, values)
    assert all(each.shape[0] == 0 for name, each in out.items() if op != "RaggedAdvance")


@pytest.mark.parametrize("op", OPS[:4])
def test_a_written_table_may_not_be_another_input(op: str) -> None:
    values = sample.feeds(op)
    written, other = {
        "RaggedAttention": ("cache", "qkv"),
        "RaggedHalt": ("depths", "forced_depth"),
        "ChooseToken": ("tokens", "uniform"),
        "RaggedAdvance": ("slots", "rows"),
    }[op]
    memory = np.zeros(values[written].nbytes + values[other].nbytes, np.uint8)
    shared = {}
    for name, start in ((other, 0), (written, values[other].nbytes - 4)):
        part = memory[start : start + values[name].nbytes].view(values[name].dtype)
        shared[name] = part.reshape(values[name].shape)
    text = refusal(op, {**values, **shared})
    assert written in text and other in text and "shares memory" in text


@pytest.mark.parametrize("op", OPS)
def test_every_rank_is_checked(op: str) -> None:
    for name in sample.INPUTS[op]:
        values = sample.feeds(op)
        values[name] = values[name][np.newaxis]
        assert name in refusal(op, values), name


@pytest.mark.parametrize("op", OPS)
def test_every_missing_input_is_refused(op: str) -> None:
    for name in sample.INPUTS[op]:
        values = sample.feeds(op)
        data = sample.model(op, values, left_out=(name,))
        del values[name]
        with pytest.raises(Exception, match=op):
            sample.session(data, library_path()).run(None, values)


ATTENTION_FAULTS: list[tuple[str, tuple[int, ...], int, str]] = [
    ("rows", (0, 0), 2, "sequence is 2"),
    ("rows", (0, 0), -1, "sequence is -1"),
    ("rows", (0, 1), 6, "position is 6"),
    ("rows", (1, 2), 0, "step is 0"),
    ("rows", (1, 2), 4, "step is 4"),
    ("rows", (0, 3), 8, "slot is 8"),
    ("rows", (0, 3), -1, "slot is -1"),
    ("rows", (0, 3), 6, "slots has 7"),
    ("slots", (0, 0, 0), 8, "entry is 8"),
]


@pytest.mark.parametrize(("name", "at", "value", "sentence"), ATTENTION_FAULTS)
def test_attention_checks_what_it_indexes_with(name: str, at: tuple[int, ...], value: int, sentence: str) -> None:
    values = sample.feeds("RaggedAttention")
    values[name][at] = value
    assert sentence in refusal("RaggedAttention", values)


@pytest.mark.parametrize("name", sample.INPUTS["RaggedAttention"])
def test_attention_checks_every_size(name: str) -> None:
    axes = range(sample.feeds("RaggedAttention")[name].ndim)
    for axis in axes:
        values = sample.feeds("RaggedAttention")
        if (name, axis) in {("slots", 0), ("slots", 1), ("slots", 2), ("cache", 2)}:
            continue  # the tables' own sizes: rows are held against them instead
        values[name] = np.ascontiguousarray(np.delete(values[name], 0, axis))
        assert name in refusal("RaggedAttention", values) or name == "rows", axis


def test_attention_refuses_other_caches() -> None:
    values = sample.feeds("RaggedAttention")
    values["cache"] = values["cache"].astype(np.int32)
    assert "cache" in refusal("RaggedAttention", values)


@pytest.mark.parametrize(
    ("op", "attributes", "sentence"),
    [
        ("RaggedAttention", {"layer": -1}, "layer is -1"),
        ("RaggedAttention", {"layer": 2}, "more layers than 2"),
        ("RaggedAttention", {"num_kv_heads": 3}, "multiple of num_kv_heads"),
        ("RaggedAttention", {"head_dim": 7}, "must be even"),
        ("RaggedAttention", {"head_dim": 1026}, "head_dim is 1026"),
        ("RaggedAttention", {"num_heads": 0}, "num_heads is 0"),
        ("RaggedHalt", {"max_steps": 0}, "max_steps"),
        ("RaggedHalt", {"tau": float("nan")}, "tau"),
        ("RaggedAdvance", {"max_steps": 0}, "max_steps"),
    ],
)
def test_attributes_are_checked(op: str, attributes: dict[str, Any], sentence: str) -> None:
    assert sentence in refusal(op, sample.feeds(op), **attributes)


def test_sessions_on_several_threads_share_nothing() -> None:
    """Every op keeps working memory per thread; two pools of two threads at once must not meet in it."""
    wanted = run("RaggedAttention", sample.feeds("RaggedAttention", 3))["out"]
    wrong: list[str] = []

    def work() -> None:
        values = sample.feeds("RaggedAttention", 3)
        made = sample.session(sample.model("RaggedAttention", values), library_path(), threads=2)
        for _ in range(200):
            if not np.array_equal(made.run(None, values)[0], wanted):
                wrong.append("a result differs")

    workers = [threading.Thread(target=work) for _ in range(3)]
    for each in workers:
        each.start()
    for each in workers:
        each.join()
    assert not wrong


def test_the_library_outlives_its_sessions() -> None:
    """Closing the last session closes the library; the process, its threads and the next session must not mind."""
    code = (
        "import sys, threading, numpy as np\n"
        "from tests.plugins import sample\n"
        "values = sample.feeds('RaggedAttention')\n"
        "def work():\n"
        "    made = sample.session(sample.model('RaggedAttention', values), sys.argv[1], 2)\n"
        "    made.run(None, values)\n"
        "for _ in range(3):\n"
        "    each = threading.Thread(target=work); each.start(); each.join(); work()\n"
        "print('done')"
    )
    root = str(Path(__file__).resolve().parents[2])
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {root!r})\n" + code, str(library_path())],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr


def test_this_release_of_onnx_runtime_is_one_we_support() -> None:
    assert tuple(map(int, ort.__version__.split(".")[:2])) >= (1, 24)
