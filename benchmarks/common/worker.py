"""The other side of workers/serve.py: an engine in a process and an environment of its own."""

from __future__ import annotations

import json
import os
import subprocess
import time
from pathlib import Path
from typing import Any

from latentcot_export.errors import LatentCoTError

WORKERS = Path(__file__).resolve().parents[1] / "workers"
# Idle threads of OpenMP and ONNX Runtime spin for less than this before they sleep.
SWITCH_SECONDS = 0.1
SETTLING_PROMPT, SETTLING_TOKENS = 8, 4


class Worker:
    """A process of `python` that runs workers/`script` with one model. Errors: LatentCoTError from every method."""

    def __init__(self, name: str, python: Path, script: str, words: tuple[str, ...], model: Path, threads: int) -> None:
        self.name = name
        # every library that threads gets the same number; nothing here may reach for a model hub
        settings = {key: str(threads) for key in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
        settings |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        self.process = subprocess.Popen(
            [str(python), str(WORKERS / script), *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, **settings},
            text=True,
        )
        told = self.ask(do="load", model=str(model), threads=threads)
        self.versions: dict[str, str] = told["versions"]
        self.note: str = told["note"]

    def ask(self, **request: Any) -> dict[str, Any]:
        """One request and its answer."""
        assert self.process.stdin is not None and self.process.stdout is not None
        try:
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise LatentCoTError(f"{self.name}: its process ended; run benchmarks/workers by hand to see why")
        answer = json.loads(line)
        if "error" in answer:
            raise LatentCoTError(f"{self.name}: {answer['error']}; see benchmarks/README.md for its environment")
        return answer

    def run(self, prompts: list[list[int]], new: int) -> dict[str, Any]:
        """One timed run, after what follows a switch between engines: a sleep and a short run that is discarded."""
        time.sleep(SWITCH_SECONDS)
        self.ask(do="run", prompts=[each[:SETTLING_PROMPT] for each in prompts], new=min(new, SETTLING_TOKENS))
        return self.ask(do="run", prompts=prompts, new=new)

    def close(self) -> None:
        """Ends the process."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        try:
            self.process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self.process.kill()
