"""Think-at-Hard: three weight files, a decider that is never unpickled, a LoRA whose scaling is folded in."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from latentcot_export.checkpoint import read_checkpoint
from latentcot_export.checkpoint.families import find_family
from latentcot_export.checkpoint.read import specs_of
from latentcot_export.errors import InputError
from latentcot_export.spec import AdapterSpec, RecurrenceSpec
from tests.families.sample import BACKBONES, DECIDER, TAH, publish

LORA = "lora/adapter_model.safetensors"


def refusal(facts: dict[str, Any], lora: dict[str, Any] | None = None, **config: Any) -> str:
    changed = {"tah_config.json": TAH["tah_config.json"] | facts, "lora/adapter_config.json": lora}
    with pytest.raises(InputError) as caught:
        specs_of(find_family("tah", "c"), {**BACKBONES["qwen3"], **TAH, **changed, **config}, "folder/config.json")
    return str(caught.value)


def test_the_files_are_those_that_are_published(tmp_path: Path) -> None:
    publish(tmp_path / "c", "tah")
    found = {path.relative_to(tmp_path / "c").as_posix() for path in (tmp_path / "c").rglob("*") if path.is_file()}
    assert found == {
        *("config.json", "model.safetensors", "tah_config.json", "iter_decider.safetensors"),
        *("lora/adapter_config.json", LORA),
    }
    decider = load_file(tmp_path / "c" / "iter_decider.safetensors")
    assert {name: tuple(value.shape) for name, value in decider.items() if name.endswith("weight")} == {
        "layer_norm_hidden_states.weight": (48,),
        "logits_projection.weight": (16, 7),
        "combined_projection.weight": (5, 64),
        "backbone.input_projection.weight": (5, 5),
        **{f"backbone.blocks.{b}.layer_norm.weight": (w,) for b, w in enumerate((5, 5, 6))},
        **{f"backbone.blocks.{b}.mlp.0.weight": (2 * w, w) for b, w in enumerate((5, 5, 6))},
        **{f"backbone.blocks.{b}.mlp.3.weight": (o, 2 * w) for b, (w, o) in enumerate(((5, 5), (5, 6), (6, 6)))},
        "backbone.blocks.1.dim_change.weight": (6, 5),
        "backbone.output_layer.0.weight": (6,),
        "backbone.output_layer.1.weight": (1, 6),
    }
    names = load_file(tmp_path / "c" / LORA)
    prefix = "base_model.model.model.layers.1"
    assert names[f"{prefix}.self_attn.q_proj.lora_A.weight"].shape == (2, 16)
    assert names[f"{prefix}.mlp.down_proj.lora_B.weight"].shape == (16, 2)
    assert len(names) == 2 * 7 * 2


def test_scaling_goes_into_the_second_matrix(tmp_path: Path) -> None:
    read = publish(tmp_path / "c", "tah")
    path = tmp_path / "c" / "lora" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"lora_alpha": 6}))  # r is 2
    again = read_checkpoint(tmp_path / "c")
    for name, value in read.tensors.items():
        factor = 3.0 if name.endswith("adapter_out.weight") else 1.0
        torch.testing.assert_close(again.tensors[name], value * factor, rtol=0, atol=0)
    assert read.recurrence.adapter == AdapterSpec(2)


def test_one_iteration_is_the_stock_model_whatever_else_lies_there(tmp_path: Path) -> None:
    stock = publish(tmp_path / "c", "tah with one iteration")
    publish(tmp_path / "t", "tah")
    for name in ("iter_decider.safetensors", LORA):
        (tmp_path / "c" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "t" / name).rename(tmp_path / "c" / name)
    read = read_checkpoint(tmp_path / "c")
    assert (read.family, read.recurrence) == ("tah", RecurrenceSpec(0)) and read.tensors.keys() == stock.tensors.keys()


class Bomb:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return Path.mkdir, (self.mark,)


def test_a_pickled_decider_is_named_and_never_opened(tmp_path: Path) -> None:
    publish(tmp_path / "c", "tah")
    (tmp_path / "c" / "iter_decider.safetensors").unlink()
    with pytest.raises(InputError, match=r"tensors are missing \(iter_decider.safetensors:layer_norm"):
        read_checkpoint(tmp_path / "c")
    torch.save({"state_dict": Bomb(tmp_path / "mark")}, tmp_path / "c" / "iter_decider.bin")
    with pytest.raises(InputError, match=r"iter_decider.bin is a pickle.*`latentcot convert .*`"):
        read_checkpoint(tmp_path / "c")
    assert not (tmp_path / "mark").exists()


def test_the_stored_threshold_is_ignored_and_other_tensors_are_not(tmp_path: Path) -> None:
    publish(tmp_path / "c", "tah")
    path = tmp_path / "c" / "iter_decider.safetensors"
    tensors = load_file(path)
    save_file(tensors | {"threshold": torch.tensor(0.5, dtype=torch.float64)}, path)
    assert read_checkpoint(tmp_path / "c").recurrence.halt_threshold == 0.9
    save_file(tensors | {"backbone.extra": torch.ones(1)}, path)
    with pytest.raises(InputError, match=r"1 tensor is unexpected \(iter_decider.safetensors:backbone.extra\)"):
        read_checkpoint(tmp_path / "c")


def test_a_folder_that_leads_elsewhere_is_not_followed(tmp_path: Path) -> None:
    publish(tmp_path / "c", "tah")
    (tmp_path / "c" / "lora").rename(tmp_path / "elsewhere")
    (tmp_path / "c" / "lora").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InputError, match="is a link out of the checkpoint folder"):
        read_checkpoint(tmp_path / "c")


def test_side_files_are_not_keys_of_the_config(tmp_path: Path) -> None:
    publish(tmp_path / "c", "qwen3")
    config = json.loads((tmp_path / "c" / "config.json").read_text())
    (tmp_path / "c" / "config.json").write_text(json.dumps(config | TAH))
    with pytest.raises(InputError, match="it belongs in a file of its own"):
        read_checkpoint(tmp_path / "c")


@pytest.mark.parametrize(
    ("facts", "named"),
    [
        ({"iter_decider": "Qwen3MLPIterDecider"}, "iter_decider is 'Qwen3MLPIterDecider'"),
        ({"input_updater": "Qwen3MLPUpdater"}, "input_updater is"),
        ({"input_updater_kwargs": {"use_hidden_states": True}}, "use_hidden_states"),
        ({"output_updater": "Other"}, "output_updater is 'Other'"),
        ({"iter_attention_mode": "causal"}, "iter_attention_mode is 'causal'.*duo"),
        ({"weighted_hidden_method": "even_mix"}, "weighted_hidden_method"),
        ({"eval_iter_decider": "FixedIterDecider"}, "eval_iter_decider"),
        ({"eval_iter_decider_kwargs": {"threshold": 0.5}}, "eval_iter_decider_kwargs"),
        ({"adapter": "dora"}, "adapter is 'dora'"),
        ({"max_iter": 0}, "max_iter is 0"),
        ({"iter_decider_kwargs": []}, "iter_decider_kwargs is"),
        ({"iter_decider_kwargs": DECIDER | {"threshold": None}}, "has no threshold"),
        ({"iter_decider_kwargs": DECIDER | {"hidden_states_size": 8}}, "hidden_states_size is 8"),
        ({"iter_decider_kwargs": DECIDER | {"hidden_states_layer_nums": [3]}}, "hidden_states_layer_nums has 3"),
        ({"iter_decider_kwargs": DECIDER | {"hidden_dims": []}}, "widths is"),
        ({"iter_decider_kwargs": DECIDER | {"topk": 31}}, "topk is 31"),
    ],
    ids=str,
)
def test_what_is_not_supported_is_named_with_its_file(facts: dict[str, Any], named: str) -> None:
    text = refusal(facts, TAH["lora/adapter_config.json"])
    assert re.search(named, text) and "\n" not in text


@pytest.mark.parametrize("option", ["use_dora", "rank_pattern", "modules_to_save", "bias", "layers_to_transform"])
def test_options_of_peft_that_change_the_computation_are_named(option: str) -> None:
    assert f"{option} is" in refusal({}, TAH["lora/adapter_config.json"] | {option: ["x"]})
    assert "target_modules names 'embed'" in refusal({}, {"target_modules": ["q_proj", "embed"]})


def test_other_families_refuse_its_side_file() -> None:
    with pytest.raises(InputError, match=r"tah_config.json is .*recurrent checkpoint of tah, not one of qwen3"):
        specs_of(find_family("qwen3", "c"), {**BACKBONES["qwen3"], **TAH}, "c")
