"""Models and their random weights: the two sizes of arXiv 2602.08220, and small ones for the emulation."""

from __future__ import annotations

import dataclasses

import torch

from latentcot_export.checkpoint.shapes import tensor_shapes
from latentcot_export.errors import InputError
from latentcot_export.spec import ModelSpec, RecurrenceSpec

TAU = 1e-4  # of the sister papers; depths are forced where time is taken


def llama(hidden: int, intermediate: int, layers: int = 24, heads: int = 16, vocabulary: int = 50304) -> ModelSpec:
    """A Llama whose heads are all key-value heads and whose head is no tied table."""
    return ModelSpec(vocabulary, hidden, intermediate, layers, heads, heads, hidden // heads, 1e-5, 1 << 15)


# A layer has 4 D^2 + 3 D F weights, table and head 50304 D each (50304 is GPT-NeoX's vocabulary, padded, on which Pythia
# was trained, too). D 1024, F 2816: 24 * 12.85 M + 2 * 51.5 M = 411 M. D 2048, F 5632: 24 * 51.4 M + 2 * 103 M = 1.44 G.
SIZES = {"410M": llama(1024, 2816), "1.4B": llama(2048, 5632)}
TINY = {"410M": llama(64, 96, 2, 2, 61), "1.4B": llama(64, 80, 2, 1, 61)}  # heads of 32 and 64 lanes


def latents(count: int) -> RecurrenceSpec:
    """The paper's recurrence with so many latents at most."""
    return RecurrenceSpec(max_latents=count, halt_threshold=TAU)


@dataclasses.dataclass(frozen=True)
class Layer:
    """Matrices `[out, in]` of one layer; queries, keys and values as one, gate and up as one."""

    before: torch.Tensor
    qkv: torch.Tensor
    o: torch.Tensor
    after: torch.Tensor
    gate_up: torch.Tensor
    down: torch.Tensor
    norms: tuple[torch.Tensor, torch.Tensor] | None = None  # float32, of query and key heads


@dataclasses.dataclass(frozen=True)
class Weights:
    """All of a model, on one device; matrices in one dtype, norms and the router, `[J, D]` and `[J]`, in float32."""

    table: torch.Tensor
    layers: tuple[Layer, ...]
    norm: torch.Tensor
    head: torch.Tensor
    router: torch.Tensor
    bias: torch.Tensor

    @classmethod
    def of(
        cls,
        model: ModelSpec,
        recurrence: RecurrenceSpec,
        tensors: dict[str, torch.Tensor],
        device: torch.device,
        dtype: torch.dtype,
    ) -> Weights:
        """Those of a checkpoint. Errors: InputError for a model that is not of Llama's kind with linear routers."""
        plain = (model.block, model.norm, model.mlp, model.activation) == ("pre", "rms", "gated", "silu")
        thinks = recurrence.router_type == "linear" and recurrence.feedback is None and recurrence.adapter is None
        if not plain or not thinks or model.attention_bias or model.mlp_bias:
            raise InputError("benchmarks/gpu runs Llama's layers with linear routers alone; give another checkpoint")

        def take(*names: str) -> torch.Tensor:
            return torch.cat([tensors[name].to(device, dtype) for name in names])

        def exact(*names: str) -> torch.Tensor:
            return torch.cat([tensors[name].to(device).float() for name in names])

        layers = []
        for index in range(model.num_layers):
            at = f"model.layers.{index}."
            projections = [f"{at}self_attn.{name}_proj.weight" for name in "qkv"]
            norms = [f"{at}self_attn.{name}_norm.weight" for name in "qk"]
            layers.append(
                Layer(
                    exact(f"{at}input_layernorm.weight"),
                    take(*projections),
                    take(f"{at}self_attn.o_proj.weight"),
                    exact(f"{at}post_attention_layernorm.weight"),
                    take(f"{at}mlp.gate_proj.weight", f"{at}mlp.up_proj.weight"),
                    take(f"{at}mlp.down_proj.weight"),
                    (exact(norms[0]), exact(norms[1])) if model.qk_norm else None,
                )
            )
        table = take("model.embed_tokens.weight")
        routers = sorted(name for name in tensors if name.startswith("router.") and name.endswith(".weight"))
        bias = [name.removesuffix("weight") + "bias" for name in routers]
        return cls(
            table,
            tuple(layers),
            exact("model.norm.weight"),
            table if model.tie_word_embeddings else take("lm_head.weight"),
            exact(*routers),
            exact(*bias),
        )

    @property
    def pass_bytes(self) -> int:
        """Bytes of what every pass reads: the layers, norms, router and head, and of the table next to nothing."""
        held = [self.norm, self.head, self.router, self.bias]
        for layer in self.layers:
            held += [layer.before, layer.qkv, layer.o, layer.after, layer.gate_up, layer.down]
        return sum(each.numel() * each.element_size() for each in held)


def random_on_device(
    model: ModelSpec, recurrence: RecurrenceSpec, device: torch.device, seed: int = 0
) -> dict[str, torch.Tensor]:
    """bfloat16 tensors by name, drawn where they are used: a billion numbers take the host too long."""
    generator = torch.Generator(device).manual_seed(seed)
    tensors = {}
    for name, shape in tensor_shapes(model, recurrence).items():
        values = torch.empty(shape, dtype=torch.bfloat16, device=device)
        if name.endswith("norm.weight"):
            tensors[name] = values.fill_(1)
        else:
            tensors[name] = values.normal_(0, shape[-1] ** -0.5, generator=generator)
    return tensors
