"""Probe requests whose answers are beyond doubt: the eager oracle's choices with their margins. Imports torch.

Run as a program it prints them as JSON, so that a measured process need not hold torch:

    python benchmarks/common/probes.py BUNDLE COUNT PROMPT NEW
"""

from __future__ import annotations

import json
import sys
from typing import Any

import numpy as np
import torch

from latentcot_export.bench.eager import TorchEngine
from latentcot_export.bench.workload import Depths, Workload
from latentcot_export.bundle import Bundle, open_bundle
from latentcot_export.errors import LatentCoTError
from latentcot_export.model import step_major

# Least distance of a decision from going the other way: of the best logit from the second, of reach x gate from tau.
MARGIN = 1e-3


def probes(bundle: Bundle, count: int, prompt: int, new: int) -> list[dict[str, Any]]:
    """`count` prompts of `prompt` tokens with `new` greedy tokens and the depths of all but the last.

    Errors: LatentCoTError when 16 x as many candidates do not have as many with the margins.
    """
    torch.set_num_threads(1)
    workload = Workload(bundle, Depths())
    engine = TorchEngine.of(bundle, "continuous")
    batch = workload.batch(16 * count, prompt, new)
    engine.start(batch)
    engine.decode(new - 1)
    tokens = np.concatenate((batch.prompts, engine.tokens[:, prompt : prompt + new]), axis=1)
    thoughts = step_major(engine.model, torch.from_numpy(tokens[:, :-1]))
    logits = engine.model.head(thoughts.mix[:, prompt - 1 :])
    best = logits.topk(2, dim=-1).values
    apart = (best[..., 0] - best[..., 1]).amin(1)
    tau = max(bundle.manifest.recurrence.halt_threshold, 1e-30)
    decided = ((thoughts.next_reach / tau - 1).abs().nan_to_num(nan=torch.inf)).flatten(1).amin(1)
    sure = torch.nonzero((apart > MARGIN) & (decided > MARGIN))[:, 0].tolist()
    if len(sure) < count:
        raise LatentCoTError(f"only {len(sure)} of {len(tokens)} candidates decide by {MARGIN}; ask for fewer probes")
    return [
        {
            "prompt": tokens[i, :prompt].tolist(),
            "ids": tokens[i, prompt:].tolist(),
            "depths": thoughts.depths[i].tolist(),
        }
        for i in sure[:count]
    ]


if __name__ == "__main__":
    with torch.inference_mode():
        print(json.dumps(probes(open_bundle(sys.argv[1]), *map(int, sys.argv[2:5]))))
