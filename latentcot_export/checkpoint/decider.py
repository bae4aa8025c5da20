"""A decider as Think-at-Hard publishes it (arXiv 2511.08577): `torch.save` of a dict in a file of its own.

{"class": name of its Python class, "state_dict": {name: tensor}, "init_args": what the class was made with}. Only
`latentcot convert` opens that file; everything else reads the safetensors file that it makes.
"""

from __future__ import annotations

PUBLISHED, DECIDER = "iter_decider.bin", "iter_decider.safetensors"
CLASS = "MLPIterDecider"
# Of TaH2, which is another machine with files of the same names.
LATER_CLASSES = ("Qwen3MLPIterDecider",)
VERB = "convert"
