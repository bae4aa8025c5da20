"""What a service runs: a verified bundle as a model that generates. Needs numpy, onnxruntime and tokenizers only."""

from __future__ import annotations

from .generation import GenerateOutput, Generation
from .model import LatentCoTForCausalLM
from .sampling import SamplingParams, uniforms
from .sequence import StreamEvent
from .text import Tokenizer

__all__ = [
    "GenerateOutput",
    "Generation",
    "LatentCoTForCausalLM",
    "SamplingParams",
    "StreamEvent",
    "Tokenizer",
    "uniforms",
]
