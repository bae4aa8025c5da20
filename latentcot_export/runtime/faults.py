"""What kernels say in counters[STALLED] where values do not fit together: on a device they cannot throw."""

from __future__ import annotations

import numpy as np

from ..errors import LatentCoTError
from .native_tables import Counter

FAULTS = {-1: "RaggedHalt", -2: "RaggedAdvance", -3: "ChooseToken", -4: "RaggedAttention"}


def check_fault(counters: np.ndarray, where: str, remedy: str) -> None:
    """Says which operator found a fault, and what to do next. Errors: LatentCoTError."""
    fault = int(counters[Counter.STALLED])
    if fault < 0:
        raise LatentCoTError(
            f"{FAULTS.get(fault, 'an operator')} found values that do not fit together {where} (fault {fault}) and their "
            f"rows were dropped; {remedy}"
        )
