"""Checkpoint folders: reading them with every tensor accounted for, writing them atomically, making new ones.

Formats are those of `transformers` (config.json, safetensors); no code of a folder is run, and nothing is
unpickled but by `convert_decider`, which is asked for by name and can run nothing.
"""

from __future__ import annotations

from latentcot_export.checkpoint.convert import convert_decider
from latentcot_export.checkpoint.families import family, family_names, family_of, stock_config
from latentcot_export.checkpoint.files import tokenizer_files
from latentcot_export.checkpoint.init import init_checkpoint
from latentcot_export.checkpoint.random import random_tensors, write_random_checkpoint
from latentcot_export.checkpoint.read import Checkpoint, read_checkpoint
from latentcot_export.checkpoint.shapes import tensor_shapes
from latentcot_export.checkpoint.tokens import SpecialTokens, special_tokens
from latentcot_export.checkpoint.write import write_checkpoint

__all__ = [
    "Checkpoint",
    "SpecialTokens",
    "convert_decider",
    "family",
    "family_names",
    "family_of",
    "init_checkpoint",
    "random_tensors",
    "read_checkpoint",
    "special_tokens",
    "stock_config",
    "tensor_shapes",
    "tokenizer_files",
    "write_checkpoint",
    "write_random_checkpoint",
]
