"""How the tensors of a published checkpoint become the canonical ones, and back.

Canonical names are those of `tensor_shapes`; a family whose files use the same names needs `as_is` alone.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping, Sequence

import torch

from latentcot_export.checkpoint.shapes import HEAD, is_harmless_buffer
from latentcot_export.checkpoint.thinking_shapes import Shape
from latentcot_export.errors import InputError
from latentcot_export.spec import ModelSpec
from latentcot_export.strict_json import shown

Tensors = Sequence[torch.Tensor]


@dataclasses.dataclass(frozen=True)
class Stored:
    """One tensor of a file: its name, its shape, and the canonical tensors `makes` that it holds.

    `split` makes them of it and `join` it of them, exactly, in any dtype; without them the two are the same tensor, which
    then stays mapped from disk. `aliases` are other names it may have. An `optional` one may be missing. One that makes
    nothing is checked and dropped, and written only when `join` makes it out of nothing.
    """

    name: str
    shape: Shape
    makes: tuple[str, ...]
    optional: bool = False
    aliases: tuple[str, ...] = ()
    split: Callable[[torch.Tensor], Tensors] | None = None
    join: Callable[[Tensors], torch.Tensor] | None = None


@dataclasses.dataclass(frozen=True)
class Layout:
    """All tensors of a published checkpoint. `ignored` matches names of buffers that every reader recomputes."""

    stored: tuple[Stored, ...]
    ignored: re.Pattern[str] | None = None

    def plus(self, stored: Iterable[Stored]) -> Layout:
        """The same layout with further tensors."""
        return dataclasses.replace(self, stored=(*self.stored, *stored))

    def drops(self, name: str) -> bool:
        """Whether a tensor of this name is neither read nor missed."""
        return is_harmless_buffer(name) or (self.ignored is not None and self.ignored.fullmatch(name) is not None)

    def names_of(self, found: Iterable[str], where: str) -> dict[str, str]:
        """{name in the file: name in the layout}, aliases resolved. Errors: InputError for one tensor under two names."""
        alias = {other: stored.name for stored in self.stored for other in stored.aliases}
        names = {name: alias.get(name, name) for name in found if not self.drops(name)}
        seen: dict[str, str] = {}
        for name, own in names.items():
            if own in seen:
                raise InputError(f"{where} holds {shown(own)} twice, also as {shown(name)}; remove one of them")
            seen[own] = name
        return names

    def required(self) -> dict[str, Shape]:
        """{name: shape} of what must be there."""
        return {stored.name: stored.shape for stored in self.stored if not stored.optional}

    def optional(self) -> dict[str, Shape]:
        """{name: shape} of what may be there."""
        return {stored.name: stored.shape for stored in self.stored if stored.optional}

    def canonical(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Canonical tensors of published ones, whose shapes have been checked."""
        made: dict[str, torch.Tensor] = {}
        for stored in self.stored:
            if stored.makes and stored.name in tensors:
                tensor = tensors[stored.name]
                parts = (tensor,) if stored.split is None else stored.split(tensor)
                made.update(zip(stored.makes, parts, strict=True))
        return made

    def published(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The inverse of `canonical`; an optional tensor of which a part is missing is left out."""
        written: dict[str, torch.Tensor] = {}
        for stored in self.stored:
            if (stored.makes or stored.join) and all(name in tensors for name in stored.makes):
                parts = [tensors[name] for name in stored.makes]
                written[stored.name] = parts[0] if stored.join is None else stored.join(parts)
        return written


def as_is(shapes: Mapping[str, Shape]) -> tuple[Stored, ...]:
    """Tensors that are published under their canonical names and with their canonical shapes."""
    return tuple(Stored(name, shape, (name,)) for name, shape in shapes.items())


def dropped(shapes: Mapping[str, Shape]) -> tuple[Stored, ...]:
    """Tensors that may be there, are checked, and have no part in the computation."""
    return tuple(Stored(name, shape, (), optional=True) for name, shape in shapes.items())


def zeros(name: str, shape: Shape) -> Stored:
    """One that is dropped when it is read and written as zeros, so that the published code finds it."""
    return Stored(name, shape, (), optional=True, join=lambda _: torch.zeros(shape))


def negated(name: str, canonical: str, shape: Shape) -> Stored:
    """A tensor published with the other sign: the logit of stopping where ours is the logit of going on."""
    return Stored(name, shape, (canonical,), split=lambda x: (-x,), join=lambda parts: -parts[0])


def fused_heads(name: str, makes: tuple[str, ...], heads: int, shape: Shape) -> Stored:
    """One linear layer for several projections, its rows grouped by head: `[heads, projection, head_dim]`.

    `shape` is that of the published tensor, `[out]` or `[out, in]`; each part is `[out / len(makes), ...]`.
    """
    rest = shape[1:]

    def split(tensor: torch.Tensor) -> Tensors:
        grouped = tensor.reshape(heads, len(makes), -1, *rest)
        return tuple(grouped[:, j].reshape(-1, *rest) for j in range(len(makes)))

    def join(parts: Tensors) -> torch.Tensor:
        return torch.stack([part.reshape(heads, -1, *rest) for part in parts], dim=1).reshape(shape)

    return Stored(name, shape, makes, split=split, join=join)


def tied_head(model: ModelSpec, name: str = HEAD, aliases: tuple[str, ...] = ()) -> tuple[Stored, ...]:
    """The redundant copy of the embedding that some tied checkpoints store; it must equal the embedding."""
    shape = (model.vocab_size, model.hidden_size)
    return (Stored(name, shape, (HEAD,), optional=True, aliases=aliases),) if model.tie_word_embeddings else ()


__all__ = [
    "HEAD",
    "Layout",
    "Stored",
    "as_is",
    "dropped",
    "fused_heads",
    "negated",
    "tied_head",
    "zeros",
]
