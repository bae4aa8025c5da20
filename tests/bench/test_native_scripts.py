"""The scripts of benchmarks/ that need a `--target ort` bundle run, and their judgements can fail."""

from __future__ import annotations

import json
import string
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from latentcot_export.checkpoint import write_random_checkpoint
from latentcot_export.export import export
from latentcot_export.spec import RecurrenceSpec
from tests.bundles import RANDOM_MODEL

ROOT = Path(__file__).resolve().parents[2]


def run(script: str, words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, f"benchmarks/{script}", *words.split()]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)


def report_of(script: str, words: str, out: Path, status: int = 0) -> dict[str, Any]:
    done = run(script, f"{words} -o {out}")
    assert done.returncode == status, done.stderr
    name = script.removesuffix(".py")
    page = (out / f"{name}.md").read_text("utf-8")
    assert page == done.stdout
    assert str(out.parent) not in page  # no folder of this machine
    report: dict[str, Any] = json.loads((out / f"{name}.json").read_text("utf-8"))
    assert {"command", "date", "load", "machine", "checks"} <= set(report)
    return report


@pytest.fixture(scope="module")
def bundles(random_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ort")
    for name, quantize in (("float32", "none"), ("int4", "int4")):
        export(random_checkpoint, folder / name, target="ort", quantize=quantize, validate=False)
    return folder


@pytest.fixture
def scripts(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    before = set(sys.modules)
    yield
    for name in {name for name in sys.modules if name.partition(".")[0] in ("common", "soak")} - before:
        del sys.modules[name]


def test_exits_are_measured_by_threshold_and_held_against_the_released_rule(tmp_path: Path) -> None:
    words = "--hidden 64 --layers 1 --loops 3 --vocabulary 64 -b 2 -p 4 -n 6 -r 2 -w 0 --threads 1 --compared 12"
    report = report_of("exits.py", f"{words} --thresholds 0.4,0.9", tmp_path / "out")
    assert [row["threshold"] for row in report["speed"]] == [0.4, 0.9, 1.0]
    depths = [row["mean_depth"] for row in report["speed"]]
    assert depths == sorted(depths) and depths[0] < depths[-1] == 3.0
    assert all(sum(row["depth_shares"]) == pytest.approx(1.0) for row in report["speed"])
    assert report["speed"][0]["passes"] < report["speed"][-1]["passes"] == 3 * 6
    assert all(row["tokens_per_s"]["runs"] == 2 for row in report["speed"])
    first, last = report["difference"][0], report["difference"][-1]
    assert first["largest_difference"] > 1e-3 and last["largest_difference"] == 0.0 and last["same_exit"] == 1.0


@pytest.mark.parametrize("words", ["--thresholds 0", "--thresholds x", "--hidden 65", "--loops 1", "-b 0"])
def test_exits_refuses_in_one_sentence(tmp_path: Path, words: str) -> None:
    done = run("exits.py", f"{words} -o {tmp_path}/out")
    assert done.returncode == 2 and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_floor_compares_passes_with_chains(bundles: Path, tmp_path: Path) -> None:
    words = f"{bundles}/float32 {bundles}/int4 --context 12 -b 1,2 --passes 4 -r 1 --threads 1"
    report = report_of("floor.py", words, tmp_path / "out")
    assert [(row["quantize"], row["batch"]) for row in report["rows"]] == [
        ("none", 1),
        ("none", 2),
        ("int4", 1),
        ("int4", 2),
    ]
    for row in report["rows"]:
        assert row["chain_ms"]["median"] == min(each["median"] for each in row["chains_ms"].values())
        floor = row["chain_ms"]["median"] + row["read_ms"]["median"]
        assert row["ratio"]["median"] == pytest.approx(row["pass_ms"]["median"] / floor)
        assert {"RaggedHalt", "RaggedAdvance", "ChooseToken", "RaggedAttention"} <= set(row["profile_ms"])
        assert 0 < row["scheduling_share"] < 1


def test_schedule_keeps_every_place_live(bundles: Path, tmp_path: Path) -> None:
    words = f"{bundles}/float32 --trace 2:5 -b 2 --backlog 12 --lengths 4:9 --threads 1"
    report = report_of("schedule.py", words, tmp_path / "out")
    (row,) = report["rows"]
    assert row["occupancy"] == 1.0 and row["rows"] == 2 * row["passes"]
    assert 1 < row["mean_depth"] < 5
    assert row["occupancy_lockstep"] < 1.0
    assert sum(row["shares"]) == pytest.approx(1)
    assert sum(k * share for k, share in enumerate(row["shares"], 1)) == pytest.approx(2)


def test_eager_finds_the_same_tokens(bundles: Path, tmp_path: Path) -> None:
    report = report_of("eager.py", f"{bundles}/float32 -b 2 --backlog 8 -n 6", tmp_path)
    assert report["same_tokens"] == report["requests"] == 8
    assert len(report["ours"]) == len(report["eager"]) == 2 and min(report["ours"] + report["eager"]) > 0
    assert 1 <= report["mean_depth"][0] == report["mean_depth"][1]


def test_eager_refuses_in_one_sentence(bundles: Path, tmp_path: Path) -> None:
    done = run("eager.py", f"{bundles}/float32 --backlog 7 -o {tmp_path}")
    assert done.returncode == 2
    assert (
        done.stderr
        == "error: --backlog must be a multiple of the batch times the rounds, -n at least 2; give other numbers\n"
    )


def test_soak_answers_everybody(bundles: Path, tmp_path: Path) -> None:
    words = f"{bundles}/float32 -n 120 --places 4 --cache-slots 1300 --threads 1"
    done = run("soak.py", f"{words} -o {tmp_path}")  # so short a run may not judge memory
    report = json.loads((tmp_path / "soak.json").read_text("utf-8"))
    assert done.returncode in (0, 1), done.stderr
    assert report["faults"] == []
    assert report["requests"] == sum(report["ends"].values()) == 120
    assert report["slots_free"] == report["slots"] == 1300
    assert report["ends"]["cancelled"] > 0 and report["probed"] > 0


def test_soak_sees_wrong_answers(scripts: None) -> None:
    import soak

    class Result:
        ids, depths, stop = [[5, 6]], [[1, 1, 2]], ["length"]

    class Handle:
        def __iter__(self) -> Iterator[Any]:
            return iter([type("Event", (), {"token": token}) for token in (5, 6)])

        def result(self) -> Result:
            return Result()

    judge = object.__new__(soak.Soak)
    judge.vocab_size, judge.max_steps = 10, 3
    judge.ends, judge.tokens, judge.probed, judge.probes = soak.Counter(), 0, 0, []
    judge.expected = {0: ([5, 6], [1, 1, 2]), 1: ([5, 7], [1, 1, 2])}

    def fault(**changed: Any) -> str | None:
        asked: Any = soak.Asked(Handle(), [1, 2], 2, None)  # type: ignore[arg-type]
        for name, value in changed.items():
            setattr(asked, name, value)
        return judge._fault(asked)

    assert fault() is None and fault(probe=0) is None
    assert "probe 1" in (fault(probe=1) or "")
    assert "cancelled" in (fault(cancelled=True) or "")
    assert "2 of 3" in (fault(new=3) or "")
    assert "depths" in (fault(prompt=[1]) or "")
    judge.max_steps = 1
    assert "depths" in (fault() or "")
    judge.max_steps, judge.vocab_size = 3, 6
    assert "vocabulary" in (fault() or "")


def test_growth_is_between_warm_up_and_end(scripts: None) -> None:
    import soak

    flat = [(n, 100) for n in range(0, 100, 5)]
    assert soak.growth(flat, 100) == (100, 100, 0.0)
    assert soak.growth([(n, 100 + n) for n, _ in flat], 100)[2] > 0.3


def test_a_check_holds_or_not(scripts: None) -> None:
    from common.results import Check

    found = [
        Check("a", 1.0, 1.0),
        Check("a", 0.9, 1.0),
        Check("a", 1.0, 1.0, most=True),
        Check("a", 1.1, 1.0, most=True),
    ]
    assert [check.passed for check in found] == [True, False, True, False]
    assert Check("a", None, 1.0).passed is None
    assert Check("a", None, 1.0).row()["holds"] == "not measured"


def test_peers_measures_what_is_there_and_names_what_is_not(tmp_path: Path) -> None:
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers

    kit = tmp_path / "kit"
    vocabulary = {"?": 0} | {sign: i for i, sign in enumerate(string.printable[:95], 1)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    (kit / "models" / "base").mkdir(parents=True)
    tokenizer.save(str(kit / "models" / "base" / "tokenizer.json"))
    # tau above 1: every token halts after one step
    write_random_checkpoint(tmp_path / "stock", RANDOM_MODEL, RecurrenceSpec(1, 2.0), 3)
    export(tmp_path / "stock", kit / "bundles" / "float32", target="ort", validate=False)
    names = "latentcot float32,latentcot submit float32,llama.cpp F32,latentcot int8"
    command = [sys.executable, "benchmarks/peers.py", "--only", names]
    command += f"--kit {kit} -p 4 -n 3 --prompt 8 -b 2 -r 2 --threads 1 -o {tmp_path}/out".split()
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "out" / "peers.json").read_text("utf-8"))
    assert [(row["test"], row["batch"], row["engine"]) for row in report["rows"]] == [
        *(("tg3", 1, engine) for engine in ("latentcot", "latentcot submit")),
        *(("pp8", 1, engine) for engine in ("latentcot", "latentcot submit")),
        ("tg3", 2, "latentcot"),
    ]
    assert [row["sequences with the same tokens"] for row in report["agreement"]] == ["1 of 1"]
    assert "not installed" in report["missing"]["llama.cpp F32"]
    assert "bundles/int8" in report["missing"]["latentcot int8"]
    assert {check["passed"] for check in report["checks"]} == {None}
    assert str(tmp_path) not in done.stdout


def test_peers_tells_of_other_tokens(scripts: None) -> None:
    import peers

    test = peers.Test(4, 2, 1)
    same, other = {"tokens": [[1, 2, 3]], "burst_seconds": 1.0}, {"tokens": [[1, 9, 3]], "burst_seconds": 2.0}
    samples = {"latentcot float32": [same, same], "llama.cpp F32": [other, same], "transformers float32": [same, same]}
    found = {row["engine"]: row for row in peers.agreement(test, samples)}
    assert found["llama.cpp"]["sequences with the same tokens"] == "0 of 1"
    assert found["llama.cpp"]["first other token"] == "1"
    assert found["llama.cpp"]["same in all its runs"] == "no"
    assert found["transformers"]["sequences with the same tokens"] == "1 of 1"
    ratio = peers.ratios(test, samples, "latentcot float32", "llama.cpp F32")
    assert (ratio.low, ratio.median, ratio.high) == (1.0, 1.5, 2.0)
