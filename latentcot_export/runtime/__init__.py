"""What a service runs: a verified bundle as a model that generates. Needs numpy, onnxruntime and tokenizers only."""

from __future__ import annotations

from .engine import Engine, QueueFull
from .generation import Generation
from .handle import RequestHandle
from .model import LatentCoTForCausalLM
from .output import GenerateOutput
from .sampling import SamplingParams, uniforms
from .sequence import StreamEvent
from .text import Tokenizer

__all__ = [
    "Engine",
    "GenerateOutput",
    "Generation",
    "LatentCoTForCausalLM",
    "QueueFull",
    "RequestHandle",
    "SamplingParams",
    "StreamEvent",
    "Tokenizer",
    "uniforms",
]
