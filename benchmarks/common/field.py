"""The engines of peers.py: which worker, which environment, which model file, and how to get what is missing."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

OURS = "latentcot"
SETUP = "requirements/peers"


@dataclasses.dataclass(frozen=True)
class Contestant:
    """One line of the table. `environment` is a folder below environments/, None for the one that runs this script."""

    engine: str
    weights: str
    kind: str  # float32, int8 or int4: what it is compared with
    environment: str | None
    worker: str
    model: str  # below the folder of the kit
    package: str
    words: tuple[str, ...] = ()
    batches: bool = True

    @property
    def name(self) -> str:
        """Engine and weights."""
        return f"{self.engine} {self.weights}"

    def python(self, kit: Path) -> Path:
        """The interpreter of its environment."""
        if self.environment is None:
            return Path(sys.executable)
        return kit / "environments" / self.environment / "bin" / "python"

    def missing(self, kit: Path) -> str | None:
        """What has to be run before it can be measured, None when it is there."""
        python = self.python(kit)
        if not python.exists() or not _imports(python, self.package):
            place = f"{kit.name}/environments/{self.environment}"
            return f"not installed; python -m venv {place}, then its pip install -r {SETUP}/{self.environment}.txt"
        if not (kit / self.model).exists():
            maker = "latentcot export" if self.engine.startswith(OURS) else "python benchmarks/peer_models.py"
            return f"no {self.model}; make it with {maker}, see benchmarks/README.md"
        return None


def _imports(python: Path, package: str) -> bool:
    code = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({package!r}) is None)"
    return subprocess.run([str(python), "-c", code], capture_output=True, check=False).returncode == 0


def _ours(weights: str, *words: str) -> Contestant:
    engine = f"{OURS} submit" if words else OURS
    return Contestant(
        engine,
        weights,
        weights,
        None,
        "latentcot_worker.py",
        f"bundles/{weights}",
        "latentcot_export",
        words,
        batches=not words,
    )


def _llama(weights: str, kind: str) -> Contestant:
    model = f"models/smollm2-{weights.lower()}.gguf"
    return Contestant("llama.cpp", weights, kind, "llama_cpp", "llama_cpp_worker.py", model, "llama_cpp")


def _genai(weights: str) -> Contestant:
    environment, model = "onnxruntime_genai", f"models/genai-{weights}"
    return Contestant("onnxruntime-genai", weights, weights, environment, "genai_worker.py", model, "onnxruntime_genai")


FIELD = (
    _ours("float32"),
    _llama("F32", "float32"),
    _genai("float32"),
    Contestant(
        "optimum-onnx", "float32", "float32", "optimum", "optimum_worker.py", "models/optimum-float32", "optimum"
    ),
    Contestant("transformers", "float32", "float32", None, "transformers_worker.py", "models/base", "transformers"),
    _ours("int8"),
    _llama("Q8_0", "int8"),
    _ours("int4"),
    _llama("Q4_1", "int4"),
    _genai("int4"),
    _ours("float32", "api"),
)
