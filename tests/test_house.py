"""The rules that keep the house as it was designed. Each rule is also shown a sample that breaks it."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests import house

ROOT = Path(__file__).resolve().parent.parent
LIBRARY = sorted(
    path.relative_to(ROOT).as_posix()
    for folder in ("latentcot_export", "cli/latentcot_cli")
    for path in (ROOT / folder).rglob("*.py")
)
SOURCES = LIBRARY + sorted(
    path.relative_to(ROOT).as_posix()
    for folder in ("tests", "examples", "benchmarks")
    for path in (ROOT / folder).rglob("*.py")
)
# Text that somebody else wrote, which may well speak of folders and hosts.
CORPUS = {"heldout.txt", "tokenizer.json"}


def repository_files() -> list[str]:
    """What git tracks or would track; the test is skipped outside a checkout."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    names = sorted(name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file())
    return names or pytest.skip(f"not a git checkout: {listed.stderr.strip()}")


def text_of(name: str) -> str | None:
    try:
        return (ROOT / name).read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return None


def test_imports_go_down_only() -> None:
    assert len(LIBRARY) > 10
    faults = [fault for name in LIBRARY for fault in house.floor_faults((ROOT / name).read_text("utf-8"), name)]
    assert not faults, "\n".join(faults)


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("latentcot_export/spec/model.py", "import numpy"),
        ("latentcot_export/spec/model.py", "from latentcot_export.errors import InputError"),
        ("latentcot_export/ops/halt.py", "from latentcot_export.model import oracle"),
        ("latentcot_export/ops/halt.py", "from ..model.oracle import run"),
        ("latentcot_export/model/oracle.py", "from .. import export"),
        ("latentcot_export/bundle/read.py", "def f():\n    import torch"),
        ("latentcot_export/bundle/read.py", "import onnx"),
        ("latentcot_export/bundle/read.py", "from latentcot_export.checkpoint import read_checkpoint"),
        ("latentcot_export/bundle/__init__.py", "from ..runtime import session"),
        ("latentcot_export/runtime/api.py", "if TYPE_CHECKING:\n    from torch import Tensor"),
        ("latentcot_export/runtime/api.py", "from latentcot_export.ops import halt"),
        ("latentcot_export/runtime/api.py", "from latentcot_export import LatentCoTForCausalLM"),
        ("latentcot_export/runtime/api.py", "try:\n    import transformers\nexcept ImportError:\n    pass"),
        ("latentcot_export/__init__.py", "from latentcot_export.export import export"),
        ("latentcot_export/validate/gates.py", "from latentcot_export import export"),
        ("latentcot_export/export/write.py", "import latentcot_cli.main"),
        ("latentcot_export/attic/things.py", "x = 1"),
        ("latentcot_export/export/write.py", "import latentcot_export.attic"),
    ],
)
def test_floor_rule_can_fail(path: str, source: str) -> None:
    assert len(house.floor_faults(source, path)) == 1


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("latentcot_export/errors.py", "from latentcot_export.spec import SpecError"),
        (
            "latentcot_export/bundle/read.py",
            "import json, numpy as np\nfrom . import manifest\nfrom ..spec import ModelSpec",
        ),
        (
            "latentcot_export/runtime/api.py",
            "import onnxruntime\nfrom tokenizers import Tokenizer\nfrom ..bundle import read",
        ),
        ("latentcot_export/__init__.py", "from .runtime.api import LatentCoTForCausalLM"),
        (
            "latentcot_export/validate/gates.py",
            "import torch\nfrom latentcot_export import LatentCoTForCausalLM, runtime",
        ),
        ("cli/latentcot_cli/main.py", "import typer\ndef f():\n    from latentcot_export.export import export"),
    ],
)
def test_floor_rule_can_pass(path: str, source: str) -> None:
    assert house.floor_faults(source, path) == []


def test_running_a_bundle_needs_no_torch() -> None:
    code = (
        "import sys, latentcot_export, latentcot_export.bundle, latentcot_export.runtime, latentcot_cli.main\n"
        "print(*sorted({name.split('.')[0] for name in sys.modules}))"
    )
    paths = f"import sys; sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / 'cli')!r}]\n"
    done = subprocess.run([sys.executable, "-c", paths + code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    loaded = set(done.stdout.split())
    assert "latentcot_export" in loaded
    assert not loaded & {"torch", "transformers", "onnx", "onnxscript", "onnx_ir", "safetensors"}


def test_library_never_runs_code_out_of_files() -> None:
    faults = [fault for name in LIBRARY for fault in house.unsafe_faults((ROOT / name).read_text("utf-8"), name)]
    assert not faults, "\n".join(faults)


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from pickle import loads",
        "import numpy, marshal",
        "def f():\n    import cloudpickle.cloudpickle",
        "torch.load(path, weights_only=True)",
        "from torch import load",
        "from builtins import eval as e",
        "eval('1')",
        "exec(text)",
        "builtins.exec(text)",
        "__import__(name)",
        "AutoModel.from_pretrained(path, trust_remote_code=True)",
        "AutoModel.from_pretrained(path, trust_remote_code=flag)",
        "np.load(path, allow_pickle=True)",
    ],
)
def test_code_rule_can_fail(source: str) -> None:
    assert len(house.unsafe_faults(source, "latentcot_export/model/x.py")) == 1


@pytest.mark.parametrize(
    "source",
    [
        "torch.load(f)",
        "torch.load(f, weights_only=False)",
        "torch.load(f, weights_only=safe)",
        "torch.load(f, **{'weights_only': True})",
        "torch.jit.load(f, weights_only=True)",
        "from torch import load",
        "import pickle",
    ],
)
def test_code_rule_can_fail_where_a_pickle_is_converted(source: str) -> None:
    assert len(house.unsafe_faults(source, house.UNPICKLING)) == 1


def test_one_module_opens_a_pickle_and_one_asks_it_to() -> None:
    assert house.unsafe_faults("torch.load(f, weights_only=True)", house.UNPICKLING) == []
    module = house.module_of(house.UNPICKLING)
    asking = [
        name
        for name in LIBRARY
        if any(found == module for _, found in house.imported(ast.parse((ROOT / name).read_text("utf-8")), name))
    ]
    assert asking == ["latentcot_export/checkpoint/convert.py"]


def test_code_rule_can_pass() -> None:
    source = "model.eval()\nre.compile('x')\nsafetensors.torch.load(data)\nf(trust_remote_code=False)\njson.load(f)"
    assert house.unsafe_faults(source, "latentcot_export/model/x.py") == []


def test_files_stay_small() -> None:
    long = {name: n for name in SOURCES if (n := len((ROOT / name).read_text("utf-8").splitlines())) > 400}
    assert not long, f"split these by what they do: {long}"


def test_no_local_paths_and_no_registry_hosts() -> None:
    faults = []
    for name in repository_files():
        text = None if Path(name).name in CORPUS or name == "tests/test_house.py" else text_of(name)
        if text is None:
            continue
        faults += house.text_faults(text, name, house.REGISTRY)
        # Hostile inputs hold absolute paths on purpose.
        if not name.startswith("tests/attacks/"):
            faults += house.text_faults(text, name, house.LOCAL_PATH)
    assert not faults, "\n".join(faults)


@pytest.mark.parametrize(
    ("pattern", "line", "found"),
    [
        (house.LOCAL_PATH, "path = '/home/someone/model'", True),
        (house.LOCAL_PATH, "see /root/x", True),
        (house.LOCAL_PATH, r"C:\Users\x", True),
        (house.LOCAL_PATH, "docs/work/plan.md and ../tmp/x and $HOME/opt/x", False),
        (house.LOCAL_PATH, "#!/usr/bin/env bash", False),
        (house.LOCAL_PATH, "https://example.com/home/page", False),
        (house.REGISTRY, "pip install --index-url x", True),
        (house.REGISTRY, "https://pypi.org/simple", True),
        (house.REGISTRY, "published on PyPI", False),
    ],
)
def test_text_rule_can_fail(pattern: re.Pattern[str], line: str, found: bool) -> None:
    assert bool(house.text_faults(line, "x", pattern)) is found


FAMILIES = "latentcot_export/checkpoint/families/"


def test_no_family_is_named_outside_its_folder() -> None:
    from latentcot_export.checkpoint import family_names

    names = family_names()
    assert {path.removeprefix(FAMILIES).removesuffix(".py") for path in LIBRARY if path.startswith(FAMILIES)} == {
        *names,
        "__init__",
    }
    others = [name for name in LIBRARY if not name.startswith(FAMILIES) or name.endswith("__init__.py")]
    faults = [fault for name in others for fault in house.family_faults((ROOT / name).read_text("utf-8"), name, names)]
    assert not faults, "\n".join(faults)


def test_every_family_file_is_short() -> None:
    lines = {name: len((ROOT / name).read_text("utf-8").splitlines()) for name in LIBRARY if name.startswith(FAMILIES)}
    assert len(lines) > 5 and not {name: count for name, count in lines.items() if count > 150}


@pytest.mark.parametrize(
    ("source", "count"),
    [
        ('if family == "ouro":\n    pass', 1),
        ("from latentcot_export.checkpoint.families.llama import llama_config", 2),
        ("x = families.gpt_neox.neox_model(config)", 1),
        ('kinds = {"qwen3": 1, "ponderlm2": 2}', 2),
        ("def read_tah(config):\n    return 1", 1),
        ('print(f"a {kind} of llama")', 1),
        ('"""Docstrings may speak of llama."""\n# and comments of ouro\nx = "like llama-bench, llama.cpp or Llama"', 0),
        ('def f():\n    """As tah does."""\n    return "utah, ourobouros"', 0),
    ],
)
def test_family_rule_can_fail(source: str, count: int) -> None:
    names = ("gpt_neox", "llama", "ouro", "ponderlm", "ponderlm2", "qwen3", "tah")
    assert len(house.family_faults(source, "latentcot_export/export/x.py", names)) == count


def test_links_of_the_documentation_lead_somewhere() -> None:
    pages = [name for name in repository_files() if name.endswith(".md")]
    links = [(page, to) for page in pages for to in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text_of(page) or "")]
    inside = [(page, to) for page, to in links if "://" not in to and not to.startswith("mailto:")]
    dead = [f"{page}: {to}" for page, to in inside if not (ROOT / page).parent.joinpath(to).exists()]
    assert inside
    assert not dead, "\n".join(dead)


def test_every_pin_is_exact_and_inside_the_range_of_pyproject() -> None:
    import tomllib

    from packaging.requirements import Requirement

    pins = {}
    for file in sorted((ROOT / "requirements").glob("*.txt")):
        for line in file.read_text("utf-8").splitlines():
            if line and not line.startswith("#"):
                name, version = line.split("==")
                assert name not in pins, f"{file.name}: {name} is pinned twice"
                pins[name] = version
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    extras = [line for extra in project["optional-dependencies"].values() for line in extra]
    for wanted in map(Requirement, project["dependencies"] + extras):
        assert pins[wanted.name] in wanted.specifier, f"{wanted} does not allow the pinned {pins[wanted.name]}"
