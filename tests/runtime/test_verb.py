"""`latentcot generate`: the documented JSON, text on stdout as it comes, depths in colours or numbers, Ctrl-C."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from latentcot_export import LatentCoTForCausalLM
from latentcot_export.runtime.session import GraphSession
from tests.cli.terminal import ENVIRONMENT, LATENTCOT, latentcot, shell


def test_json_is_as_documented(text_bundle: Path, text_model: LatentCoTForCausalLM) -> None:
    done = latentcot(
        *("generate", text_bundle, "-p", "the", "--ids", "1, 5,9", "-p", "an", "-n", 7, "-o", "json"),
        *("--temperature", 1.5, "--top-k", 30, "--top-p", 0.9, "--seed", 2**64 - 1),
    )
    assert done.exit_code == 0, done.output
    wanted = text_model.generate(["the", "an", [1, 5, 9]], 7, temperature=1.5, top_k=30, top_p=0.9, seed=2**64 - 1)
    found = json.loads(done.stdout)
    assert found == wanted.to_json()
    assert list(found) == ["schema_version", "sequences"] and found["schema_version"] == 1
    for each in found["sequences"]:
        assert list(each) == ["prompt_ids", "ids", "depths", "text", "stop"]
        assert len(each["depths"]) == len(each["prompt_ids"]) + len(each["ids"]) - 1
        assert each["stop"] in {"length", "eos"}
    assert done.stderr == ""


def test_the_text_alone_is_on_stdout(text_bundle: Path, text_model: LatentCoTForCausalLM) -> None:
    wanted = text_model.generate("the", 20, temperature=1.5, seed=3, ignore_eos=True)
    done = latentcot("generate", text_bundle, "-p", "the", "-n", 20, "--temperature", 1.5, "--seed", 3, "--ignore-eos")
    assert done.exit_code == 0
    assert done.stdout == f"{wanted.text[0]}\n"
    assert re.fullmatch(r"20 tokens in [\d.]+ s, mean depth [\d.]+ with the prompt, stopped by length\n", done.stderr)


def test_stop_texts_and_ids_without_a_tokenizer(text_bundle: Path, random_bundle: Path) -> None:
    free = json.loads(latentcot("generate", text_bundle, "-p", "in", "-n", 30, "--ignore-eos", "-o", "json").stdout)
    stop = free["sequences"][0]["text"][2]
    done = latentcot("generate", text_bundle, "-p", "in", "-n", 30, "--stop", "@", "--stop", stop, "-o", "json")
    assert json.loads(done.stdout)["sequences"][0]["stop"] == "text"
    plain = latentcot("generate", random_bundle, "--ids", "1,2", "-n", 3)
    assert re.fullmatch(r"\d+,\d+,\d+\n", plain.stdout)


def test_several_sequences_are_told_apart(random_bundle: Path, model: LatentCoTForCausalLM) -> None:
    out = model.generate([[1, 2], [3]], 4)
    done = latentcot("generate", random_bundle, "--ids", "1,2", "--ids", "3", "-n", 4)
    lines = [f"--- sequence {i} ---\n{','.join(map(str, out.ids[i]))}\n" for i in range(2)]
    assert done.stdout == "".join(lines)


def test_depths_without_colours_are_small_numbers(random_bundle: Path, model: LatentCoTForCausalLM) -> None:
    out = model.generate([1, 2], 5)
    done = latentcot("generate", random_bundle, "--ids", "1,2", "-n", 5, "--show-depth")
    numbers = [chr(ord("₀") + depth) for depth in out.depths[0][1:]]
    assert done.stdout == ",".join(f"{i}{n}" for i, n in zip(out.ids[0], numbers, strict=True)) + "\n"
    assert done.stderr.startswith("after each token: the number of passes the model took before it\n")


def test_depths_in_colours(random_bundle: Path, model: LatentCoTForCausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.delenv("COLORTERM", raising=False)
    out = model.generate([1, 2], 40, temperature=2.0, seed=4)
    sampled = ("--temperature", 2, "--seed", 4)
    done = latentcot("generate", random_bundle, "--ids", "1,2", "-n", 40, *sampled, "--show-depth", color=True)
    pieces = re.findall(r"\x1b\[38;5;(\d+)m,?(\d+)\x1b\[0m", done.stdout)
    assert [int(token) for _, token in pieces] == out.ids[0]
    colours = {}
    for (colour, _), depth in zip(pieces, out.depths[0][1:], strict=True):
        assert colours.setdefault(depth, colour) == colour, "one colour a depth"
    assert len(set(colours.values())) == len(colours) >= 3, "and one depth a colour"
    legend = re.findall(r"\x1b\[38;5;(\d+)m (\d)\x1b\[0m", done.stderr)
    assert [int(depth) for _, depth in legend] == [1, 2, 3, 4, 5]
    assert all(colours.get(int(depth), colour) == colour for colour, depth in legend)


def test_what_would_steer_a_terminal_is_not_printed() -> None:
    from latentcot_cli.generate import _printable

    assert _printable("a\x1b[2Jb\x07\r\n\té€") == "a\ufffd[2Jb\ufffd\ufffd\n\té€"


def test_greedy_says_that_sampling_options_do_nothing(random_bundle: Path) -> None:
    done = latentcot("generate", random_bundle, "--ids", "1", "-n", 1, "--seed", 3)
    assert done.exit_code == 0 and done.stderr.startswith("note: temperature 0 is greedy")


@pytest.fixture
def interrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C during the sixth call of the graph."""
    call, calls = GraphSession.call, iter(range(100))

    def counted(self: GraphSession, *arguments: Any) -> None:
        if next(calls) == 5:
            raise KeyboardInterrupt
        call(self, *arguments)

    monkeypatch.setattr(GraphSession, "call", counted)


@pytest.mark.usefixtures("interrupted")
def test_ctrl_c_tells_what_there_is_as_json(random_bundle: Path) -> None:
    done = latentcot("generate", random_bundle, "--ids", "1", "--ids", "2", "-n", 400, "-o", "json")
    assert done.exit_code == 130 and done.stderr == ""
    for each in json.loads(done.stdout)["sequences"]:
        assert each["stop"] == "cancelled" and len(each["depths"]) == len(each["ids"]) > 0


@pytest.mark.usefixtures("interrupted")
@pytest.mark.parametrize("count", [1, 2])
def test_ctrl_c_tells_what_there_is_as_text(random_bundle: Path, count: int) -> None:
    done = latentcot("generate", random_bundle, *["--ids", "1"] * count, "-n", 400)
    assert done.exit_code == 130
    assert done.stderr.endswith("stopped by cancelled\n") and done.stderr.count("\n") == 1
    lines = done.stdout.splitlines()
    assert len(lines) == (1 if count == 1 else 4) and re.fullmatch(r"\d+(,\d+)+", lines[-1])


def test_ctrl_c_of_a_process(random_bundle: Path) -> None:
    many = [word for i in range(64) for word in ("--ids", str(i))]
    command = [*LATENTCOT, "generate", str(random_bundle), *many, "-n", "500", "-o", "json"]
    before = sorted(path.name for path in random_bundle.parent.iterdir())
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=ENVIRONMENT) as process:
        maps, deadline = Path(f"/proc/{process.pid}/maps"), time.monotonic() + 60
        while "onnxruntime" not in maps.read_text() and time.monotonic() < deadline:
            time.sleep(0.02)
        time.sleep(0.7)  # loading or under way: which one does not matter
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr
    assert b"Traceback" not in stderr
    assert sorted(path.name for path in random_bundle.parent.iterdir()) == before


def test_a_closed_pipe_is_no_error(random_bundle: Path) -> None:
    done = shell("generate", random_bundle, "--ids", "1", "-n", 400, "--ignore-eos", "-o", "json")
    assert done.returncode == 0
    command = [*LATENTCOT, "generate", str(random_bundle), "--ids", "1", "-n", "400"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=ENVIRONMENT) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        assert b"Traceback" not in process.stderr.read()
        assert process.wait(60) == 141
