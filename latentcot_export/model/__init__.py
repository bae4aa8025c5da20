"""The PyTorch model and its oracle: the specification that every exported graph is compared with."""

from .llama import LatentCoT, Memory
from .oracle import Thoughts, run, step_major, token_major

__all__ = ["LatentCoT", "Memory", "Thoughts", "run", "step_major", "token_major"]
