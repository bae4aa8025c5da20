from __future__ import annotations

from pathlib import Path

import pytest
import torch

from latentcot_export.checkpoint import Checkpoint, read_checkpoint, tensor_shapes, write_random_checkpoint
from latentcot_export.errors import InputError
from latentcot_export.spec import RecurrenceSpec
from tests.checkpoint.sample import MODEL, TIED, adaptive, edit_config, edit_tensors, same_tensors, shard, stock

ROUTERS = {
    "linear-shared": (RecurrenceSpec(2), {"router.weight": (1, 16), "router.bias": (1,)}),
    "linear-per-step": (
        RecurrenceSpec(2, router_shared=False),
        {"router.0.weight": (1, 16), "router.0.bias": (1,), "router.1.weight": (1, 16), "router.1.bias": (1,)},
    ),
    "mlp-shared": (
        RecurrenceSpec(2, router_type="mlp", router_hidden_size=5),
        {
            "router.in.weight": (5, 16),
            "router.in.bias": (5,),
            "router.out.weight": (1, 5),
            "router.out.bias": (1,),
        },
    ),
    "mlp-per-step": (
        RecurrenceSpec(1, router_type="mlp", router_hidden_size=5, router_shared=False),
        {
            "router.0.in.weight": (5, 16),
            "router.0.in.bias": (5,),
            "router.0.out.weight": (1, 5),
            "router.0.out.bias": (1,),
        },
    ),
    "none": (RecurrenceSpec(0), {}),
}


@pytest.mark.parametrize("kind", list(ROUTERS))
def test_router_tensors_are_those_of_the_layout(tmp_path: Path, kind: str) -> None:
    recurrence, routers = ROUTERS[kind]
    shapes = tensor_shapes(MODEL, recurrence)
    assert {name: shape for name, shape in shapes.items() if name.startswith("router")} == routers
    read = adaptive(tmp_path / "c", MODEL, recurrence)
    assert isinstance(read, Checkpoint)
    assert (read.family, read.model, read.recurrence) == ("adaptive_latent_cot", MODEL, recurrence)
    assert {name: tuple(value.shape) for name, value in read.tensors.items()} == shapes
    assert list(read.tensors) == list(shapes)


def test_keys_that_are_absent_take_the_spec_s_defaults(tmp_path: Path) -> None:
    adaptive(tmp_path / "c")
    edit_config(tmp_path / "c", drop=("halt_threshold", "router_type", "router_shared", "embedding_scale"))
    assert read_checkpoint(tmp_path / "c").recurrence == RecurrenceSpec(max_latents=3)
    edit_config(tmp_path / "c", halt_threshold=1, embedding_scale=2)
    read = read_checkpoint(tmp_path / "c").recurrence
    assert (read.halt_threshold, read.embedding_scale) == (1.0, 2.0)
    assert isinstance(read.halt_threshold, float) and isinstance(read.embedding_scale, float)


def test_max_latents_is_required_and_a_stock_model_has_none(tmp_path: Path) -> None:
    adaptive(tmp_path / "c")
    edit_config(tmp_path / "c", drop=("max_latents",))
    with pytest.raises(InputError, match=r"max_latents is missing.*`latentcot init`"):
        read_checkpoint(tmp_path / "c")
    edit_config(tmp_path / "c", model_type="llama", max_latents=2)
    with pytest.raises(InputError, match="set model_type to adaptive_latent_cot"):
        read_checkpoint(tmp_path / "c")


@pytest.mark.parametrize("shared", [True, False])
def test_routers_without_latents_are_checked_and_dropped(tmp_path: Path, shared: bool) -> None:
    full = adaptive(tmp_path / "c", MODEL, RecurrenceSpec(3, router_shared=shared))
    edit_config(tmp_path / "c", max_latents=0)
    read = read_checkpoint(tmp_path / "c")
    assert same_tensors(read.tensors, {k: v for k, v in full.tensors.items() if not k.startswith("router")})
    name = "router.weight" if shared else "router.2.weight"
    edit_tensors(tmp_path / "c", {name: torch.zeros(1, 15)})
    with pytest.raises(InputError, match=rf"1 tensor is misshapen .{name} is .1, 15. and should be .1, 16"):
        read_checkpoint(tmp_path / "c")
    edit_tensors(tmp_path / "c", {name: torch.full((1, 16), torch.nan)})
    with pytest.raises(InputError, match=f"'{name}' holds nan"):
        read_checkpoint(tmp_path / "c")


def test_family_overrides_model_type(tmp_path: Path) -> None:
    stock(tmp_path / "c")
    edit_config(tmp_path / "c", model_type="something", max_latents=0)
    with pytest.raises(
        InputError, match=r"'something' is unknown; known families are .*adaptive_latent_cot, gpt_neox, llama, "
    ):
        read_checkpoint(tmp_path / "c")
    assert read_checkpoint(tmp_path / "c", family="llama").family == "llama"
    assert read_checkpoint(tmp_path / "c", family="adaptive_latent_cot").recurrence.max_latents == 0
    with pytest.raises(InputError, match="'gpt2' is unknown"):
        read_checkpoint(tmp_path / "c", family="gpt2")


@pytest.mark.parametrize("model", [MODEL, TIED], ids=["untied", "tied"])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_one_file_and_shards_hold_the_same(tmp_path: Path, model: object, dtype: str) -> None:
    whole = write_random_checkpoint(tmp_path / "c", model, RecurrenceSpec(2), dtype=dtype)  # type: ignore[arg-type]
    kept = {name: value.clone() for name, value in whole.tensors.items()}
    shard(tmp_path / "c")
    parts = read_checkpoint(tmp_path / "c")
    assert same_tensors(parts.tensors, kept)
    assert parts.dtype == whole.dtype == dtype


def test_mixed_dtypes_are_kept_and_the_commonest_is_named(tmp_path: Path) -> None:
    write_random_checkpoint(tmp_path / "c", MODEL, RecurrenceSpec(2), dtype="bfloat16")
    edit_tensors(tmp_path / "c", {"router.bias": torch.ones(1)})
    read = read_checkpoint(tmp_path / "c")
    assert read.dtype == "bfloat16"
    assert read.tensors["router.bias"].dtype == torch.float32


def test_tensors_in_memory_are_not_the_file(tmp_path: Path) -> None:
    read = adaptive(tmp_path / "c")
    before = (tmp_path / "c" / "model.safetensors").read_bytes()
    read.tensors["router.bias"].add_(1.0)
    assert (tmp_path / "c" / "model.safetensors").read_bytes() == before


def test_links_inside_the_folder_are_followed(tmp_path: Path) -> None:
    read = adaptive(tmp_path / "c")
    (tmp_path / "c" / "model.safetensors").rename(tmp_path / "c" / "weights-v2.safetensors")
    (tmp_path / "c" / "model.safetensors").symlink_to("weights-v2.safetensors")
    (tmp_path / "latest").symlink_to("c")
    assert same_tensors(read_checkpoint(tmp_path / "latest").tensors, read.tensors)
