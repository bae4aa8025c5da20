"""What every test runs under; set before anything imports torch or onnxruntime, which read it once."""

from __future__ import annotations

import os

for name, value in {
    "OMP_NUM_THREADS": "2",
    "MKL_NUM_THREADS": "2",
    "TOKENIZERS_PARALLELISM": "false",
    # A test that reaches for a model hub is a mistake: let it fail at once.
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
}.items():
    os.environ.setdefault(name, value)

from hypothesis import HealthCheck, settings  # noqa: E402  (after the environment is set)

# No deadline: an export takes seconds and a shared machine makes any limit a coin toss. In CI the examples are the same
# every time, so that a red run can be repeated; at home they are new every time, so that bugs are found.
_common = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow, HealthCheck.data_too_large]}
settings.register_profile("home", print_blob=True, **_common)
settings.register_profile("ci", derandomize=True, **_common)
settings.load_profile("ci" if os.environ.get("CI") else "home")

from tests.bundles import random_bundle, random_checkpoint  # noqa: E402, F401  (shared fixtures)
