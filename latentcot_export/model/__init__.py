"""The PyTorch model and its oracle: the specification that every exported graph is compared with."""

from .latent_cot import LatentCoT
from .memory import Memory
from .oracle import Thoughts, run, step_major, token_major

__all__ = ["LatentCoT", "Memory", "Thoughts", "run", "step_major", "token_major"]
