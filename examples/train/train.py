"""Trains latentcot-tiny from scratch: Llama with a linear router, pruning on, correctness-aware penalty.

    python examples/train/train.py --data build/train --out build/train/adaptive
    python examples/train/train.py --data build/train --out build/train/twin --max-latents 0

Loss (arXiv 2602.08220): cross-entropy of the exit-weighted mixture, plus
lambda * mean over tokens and gated steps of stop_gradient(p_k(y))^beta * next_reach, where p_k(y) is the true token's
probability after step k alone: thinking on is charged where the model was already right. lambda is nudged after every
update towards the wanted mean depth, because a fixed one either collapses to depth 1 early or saturates later. tau never
moves. Runs again from the newest saved state when it was interrupted; `--seconds` bounds one sitting.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import pathlib
import sys
import time

import numpy as np
import torch
import torch.nn.functional as F

from latentcot_export.model import LatentCoT, step_major
from latentcot_export.spec import ModelSpec, RecurrenceSpec, to_json

MODEL = ModelSpec(
    vocab_size=2048,
    hidden_size=192,
    intermediate_size=512,
    num_layers=3,
    num_heads=3,
    num_kv_heads=1,
    head_dim=64,
    rms_norm_eps=1e-5,
    max_position_embeddings=1024,
    tie_word_embeddings=True,
)
# Until which update: how fast lambda follows the depth, its upper bound, and the router's share of the learning rate.
# Thoughts are useless at first: a router as quick as the rest, or a lambda above 1e-2, gives up on them before they get
# good and never comes back (measured: depth 1.06 after 250 updates). Later a small lambda no longer holds the depth
# (measured: 3.0 of 5 at 0.1), so its bound is raised twice.
PHASES = ((1000, 0.01, 5e-3, 0.2), (1400, 0.03, 0.1, 0.2), (math.inf, 0.01, 3.0, 1.0))


class Trained(LatentCoT):
    """The specification model, its gate kept out of bfloat16 autocast: a threshold compare flips there."""

    def gate(self, z: torch.Tensor, step: torch.Tensor) -> torch.Tensor:
        """As LatentCoT.gate, in float32."""
        with torch.autocast(z.device.type, enabled=False):
            return super().gate(z.float(), step)


def initialise(model: LatentCoT, generator: torch.Generator, router_bias: float) -> None:
    """Normal(0, 0.02) matrices, residual outputs scaled down by depth, a router that starts out thinking on."""
    for name, parameter in model.named_parameters():
        if name == "router.bias":
            torch.nn.init.constant_(parameter, router_bias)
        elif parameter.dim() > 1:
            std = 0.02
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                std /= math.sqrt(2 * model.spec.num_layers)
            torch.nn.init.normal_(parameter, std=std, generator=generator)


def batch_of(data: np.ndarray, count: int, length: int, generator: np.random.Generator) -> torch.Tensor:
    """Token windows int64 `[count, length + 1]` from random places."""
    starts = generator.integers(0, data.size - length - 1, size=count)
    return torch.from_numpy(np.stack([data[s : s + length + 1] for s in starts]).astype(np.int64))


def losses(model: LatentCoT, window: torch.Tensor, beta: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Cross-entropy (nats per token), the penalty before lambda, and the depths `[B, T]`."""
    tokens, targets = window[:, :-1], window[:, 1:]
    thoughts = step_major(model, tokens, keep_steps=True)
    logits = model.head(thoughts.mix)
    nll = F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())
    penalty = nll.new_zeros(())
    padded = torch.cat((targets, targets.new_zeros(targets.shape[0], 1)), dim=1)
    for step in thoughts.steps[: model.recurrence.max_latents]:
        with torch.no_grad():
            truth = padded.gather(1, step.index)
            right = torch.softmax(model.head(step.z).float(), -1).gather(-1, truth.unsqueeze(-1)).squeeze(-1)
        penalty = penalty + (right.pow(beta) * step.next_reach * step.valid).sum()
    gates = max(1, model.recurrence.max_latents)
    return nll, penalty / (tokens.numel() * gates), thoughts.depths


def main() -> None:
    """Parses the command line, trains, saves state often, writes `model.pt` and `train.json` at the end."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=pathlib.Path, required=True)
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--max-latents", type=int, default=4)
    parser.add_argument("--tau", type=float, default=0.1)
    parser.add_argument("--beta", type=float, default=2.0)
    parser.add_argument("--penalty", type=float, default=5e-4, help="lambda at the start")
    parser.add_argument("--mean-depth", type=float, default=2.2, help="where lambda is steered to")
    parser.add_argument("--router-bias", type=float, default=1.0)
    parser.add_argument("--steps", type=int, default=2500)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--length", type=int, default=192)
    parser.add_argument("--rate", type=float, default=3e-3)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=math.inf, help="stop this sitting after so long")
    args = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    data = np.load(args.data / "train.npy")
    recurrence = RecurrenceSpec(max_latents=args.max_latents, halt_threshold=args.tau)
    model = Trained(MODEL, recurrence)
    initialise(model, torch.Generator().manual_seed(args.seed), args.router_bias)
    model.to(device).train()
    named = list(model.named_parameters())
    router = [p for name, p in named if name.startswith("router.")]
    decayed = [p for name, p in named if p.dim() > 1 and not name.startswith("router.")]
    others = [p for name, p in named if p.dim() <= 1 and not name.startswith("router.")]
    groups = [
        {"params": decayed, "weight_decay": 0.1, "router": False},
        {"params": others, "weight_decay": 0.0, "router": False},
        {"params": router, "weight_decay": 0.0, "router": True},
    ]
    groups = [group for group in groups if group["params"]]
    optimiser = torch.optim.AdamW(groups, lr=args.rate, betas=(0.9, 0.95))
    args.out.mkdir(parents=True, exist_ok=True)
    state_file = args.out / "state.pt"
    step, seconds, passes, weight, depth = 0, 0.0, 0, args.penalty, args.mean_depth
    if state_file.exists():
        state = torch.load(state_file, weights_only=True, map_location=device)
        model.load_state_dict(state["model"])
        optimiser.load_state_dict(state["optimiser"])
        step, seconds, passes, weight, depth = (state[k] for k in ("step", "seconds", "passes", "weight", "depth"))
        print(f"continuing at step {step} of {args.steps}", file=sys.stderr)

    def save() -> None:
        state = {"model": model.state_dict(), "optimiser": optimiser.state_dict(), "step": step, "seconds": seconds}
        state |= {"passes": passes, "weight": weight, "depth": depth}
        torch.save(state, state_file.with_suffix(".new"))
        state_file.with_suffix(".new").replace(state_file)

    began = sitting = time.monotonic()
    nll_mean = float("nan")
    while step < args.steps and time.monotonic() - sitting < args.seconds:
        generator = np.random.default_rng((args.seed, step))  # the same windows whether or not it was interrupted
        progress = step / args.steps
        gain, most, share = next(values for until, *values in PHASES if step < until)
        rate = args.rate * min(1.0, (step + 1) / 100) * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * progress)))
        for group in optimiser.param_groups:
            group["lr"] = rate * (share if group["router"] else 1.0)
        window = batch_of(data, args.batch, args.length, generator).to(device)
        with torch.autocast(device, dtype=torch.bfloat16):
            nll, penalty, depths = losses(model, window, args.beta)
        optimiser.zero_grad(set_to_none=True)
        (nll + weight * penalty).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        passes += int(depths.sum())
        depth = 0.95 * depth + 0.05 * depths.float().mean().item()
        if args.max_latents:
            weight = min(max(weight * math.exp(gain * (depth - args.mean_depth)), 1e-5), most)
        nll_mean = nll.item() if math.isnan(nll_mean) else 0.98 * nll_mean + 0.02 * nll.item()
        step += 1
        now = time.monotonic()
        seconds, began = seconds + now - began, now
        if step % 25 == 0 or step == args.steps:
            share = torch.bincount(depths.flatten(), minlength=args.max_latents + 2)[1:] / depths.numel()
            spread = " ".join(f"{100 * s:.0f}" for s in share.tolist())
            left = (args.steps - step) * seconds / step / 60
            print(
                f"step {step}/{args.steps} loss {nll_mean:.4f} depth {depth:.2f} [{spread}] lambda {weight:.1e} "
                f"{step * args.batch * args.length / seconds:.0f} tok/s, {left:.1f} min left",
                file=sys.stderr,
                flush=True,
            )
        if step % 200 == 0:
            save()
    save()
    if step < args.steps:
        print(f"stopped at step {step}; run the same command to go on", file=sys.stderr)
        return
    torch.save(model.state_dict(), args.out / "model.pt")
    facts = {"arguments": {k: str(v) if isinstance(v, pathlib.Path) else v for k, v in vars(args).items()}}
    facts["arguments"].pop("out"), facts["arguments"].pop("data"), facts["arguments"].pop("seconds")
    facts |= {
        "model": to_json(MODEL),
        "recurrence": dataclasses.asdict(recurrence),
        "seconds": seconds,
        "device": device,
    }
    facts |= {
        "tokens": step * args.batch * args.length,
        "token_passes": passes,
        "train_loss": nll_mean,
        "lambda": weight,
    }
    facts |= {"torch": torch.__version__, "threads": torch.get_num_threads()}
    (args.out / "train.json").write_text(json.dumps(facts, indent=2) + "\n")


if __name__ == "__main__":
    main()
