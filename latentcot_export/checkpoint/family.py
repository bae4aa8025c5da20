"""What a family of checkpoints is made of: the backbones it stands on, and how it writes its recurrence down."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar

from latentcot_export.checkpoint.layout import Layout, as_is
from latentcot_export.checkpoint.thinking_shapes import router_shapes
from latentcot_export.errors import InputError
from latentcot_export.spec import ModelSpec, RecurrenceSpec, SpecError
from latentcot_export.strict_json import shown

Config = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Backbone:
    """A layer stack as one `model_type` publishes it.

    `read` makes the ModelSpec of a config (its second argument names the file in errors), `write` its keys with
    `model_type`; `fits` says whether a ModelSpec is of this kind at all; `layout` names its tensors.
    """

    model_type: str
    read: Callable[[Config, str], ModelSpec]
    write: Callable[[ModelSpec], dict[str, Any]]
    fits: Callable[[ModelSpec], bool]
    layout: Callable[[ModelSpec], Layout]


class Family(abc.ABC):
    """How one kind of checkpoint writes its facts down. Instances have no state; `name` is set by `@family`.

    `named`: its checkpoints say so in `model_type`; without it they call themselves what their backbone is called and are
    known by their `marks`. `marks` are the keys of config.json that make a checkpoint recurrent in this family's way when
    they are set: every other family refuses them, since it would run such a checkpoint and be wrong. `side_files` are
    JSON files beside config.json that are read with it, each as a key of its own name; `weight_files` safetensors files
    beside the model's, whose tensors a layout names `file:name`.
    """

    name: ClassVar[str]
    backbones: ClassVar[tuple[Backbone, ...]]
    stock: ClassVar[bool] = False
    named: ClassVar[bool] = False
    marks: ClassVar[tuple[str, ...]] = ()
    side_files: ClassVar[tuple[str, ...]] = ()
    weight_files: ClassVar[tuple[str, ...]] = ()

    def recognises(self, config: Config) -> bool:
        """Whether a parsed config.json is one of this family."""
        kind = config.get("model_type")
        if self.named or kind == self.name:
            return kind == self.name
        return any(kind == each.model_type for each in self.backbones) and any(config.get(key) for key in self.marks)

    def specs(self, config: Config, where: str) -> tuple[ModelSpec, RecurrenceSpec]:
        """Read a parsed config.json. Errors: InputError or SpecError for what is wrong or not supported."""
        model = self.backbone(config, where).read(config, where)
        return model, self.recurrence(config, model, where)

    def backbone(self, config: Config, where: str) -> Backbone:
        """The backbone that `model_type` names, or the only one. Errors: InputError."""
        kind = config.get("model_type")
        if len(self.backbones) == 1:
            return self.backbones[0]
        for each in self.backbones:
            if kind == each.model_type:
                return each
        kinds = ", ".join(each.model_type for each in self.backbones)
        raise InputError(
            f"{where}: model_type is {shown(kind)}, {self.name} is read over {kinds}; set it to the model that was trained"
        )

    @abc.abstractmethod
    def recurrence(self, config: Config, model: ModelSpec, where: str) -> RecurrenceSpec:
        """The recurrence that a config describes. Errors: InputError or SpecError."""

    @abc.abstractmethod
    def ways(self, model: ModelSpec, recurrence: RecurrenceSpec) -> Iterable[dict[str, Any]]:
        """Keys beside the backbone's, of which one may make `recurrence` of them again; they may replace its keys."""

    def config(self, model: ModelSpec, recurrence: RecurrenceSpec) -> dict[str, Any]:
        """The inverse of `specs`: the keys of config.json, `model_type` included. Errors: InputError."""
        nearest: tuple[ModelSpec, RecurrenceSpec] | None = None
        for backbone in self.backbones:
            if not backbone.fits(model):
                continue
            for way in self.ways(model, recurrence):
                keys = {**backbone.write(model), **way}
                try:
                    back = self.specs(keys, self.name)
                except (InputError, SpecError):
                    continue
                if back == (model, recurrence):
                    return keys
                nearest = back
        raise InputError(f"a checkpoint of {self.name} cannot say {_first_difference(nearest, model, recurrence)}")

    def published(self, model: ModelSpec, recurrence: RecurrenceSpec, config: Config) -> Layout:
        """Where every tensor of `tensor_shapes(model, recurrence)` lies in a checkpoint with this config."""
        for backbone in self.backbones:
            if backbone.fits(model):
                return backbone.layout(model).plus(as_is(router_shapes(model, recurrence)))
        raise InputError(f"a checkpoint of {self.name} has no tensors for this layer stack; write it as another family")


class Stock(Family):
    """A family whose tokens take one step: its backbone as it is. `architectures` name the class of transformers."""

    stock, named = True, True
    architectures: ClassVar[tuple[str, ...]]

    def recurrence(self, config: Config, model: ModelSpec, where: str) -> RecurrenceSpec:
        """See Family."""
        return RecurrenceSpec(max_latents=0)

    def ways(self, model: ModelSpec, recurrence: RecurrenceSpec) -> Iterable[dict[str, Any]]:
        """See Family."""
        return ({"architectures": list(self.architectures)},)


def _first_difference(
    nearest: tuple[ModelSpec, RecurrenceSpec] | None, model: ModelSpec, recurrence: RecurrenceSpec
) -> str:
    """The first field that would not come back, for a sentence."""
    if nearest is not None:
        wanted = {**dataclasses.asdict(model), **dataclasses.asdict(recurrence)}
        come_back = {**dataclasses.asdict(nearest[0]), **dataclasses.asdict(nearest[1])}
        for name, value in wanted.items():
            if value != come_back[name]:
                return f"{name} {shown(value)}; write it as another family"
    return "this model or its recurrence; write it as another family"
