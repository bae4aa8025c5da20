"""Deploys language models that think before each token: export, validate, run and measure adaptive latent CoT."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .runtime import Engine, GenerateOutput, LatentCoTForCausalLM, QueueFull, StreamEvent

__all__ = ["Engine", "GenerateOutput", "LatentCoTForCausalLM", "QueueFull", "StreamEvent"]


def __getattr__(name: str) -> Any:
    """The names of the runtime, imported when first asked for: exporting needs no ONNX Runtime session."""
    if name in __all__:
        from . import runtime

        return getattr(runtime, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
