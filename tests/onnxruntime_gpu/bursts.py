"""Runs bursts of a bundle on device cuda and logs the calls of the last one, which replays: LIBRARY BUNDLE."""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path

from latentcot_export.bundle import open_bundle
from latentcot_export.runtime import pass_session
from latentcot_export.runtime.native_state import NativeState
from latentcot_export.runtime.native_tables import Column


def main(library: str, folder: str) -> None:
    pass_session.library_path = lambda *_: Path(library)  # type: ignore[assignment]
    bundle = open_bundle(folder)
    manifest = bundle.manifest
    session = pass_session.PassSession(bundle, device="cuda")
    state = NativeState(manifest.model, manifest.recurrence, places=2, length=64, slots=700, dtype=manifest.cache.dtype)
    state.add([1, 2, 3], 60)
    state.add([4], 50)
    log = ctypes.CDLL("libcudart.so.13").stand_in_log
    for burst in range(3):
        # no kernel runs, so nothing would be known to go on: as if three rows lived and tokens were wanted
        state.sequences[:2, Column.LENGTH] = 20
        if burst == 2:
            log(1)
        session.run(state, 24)
        log(0)
    print(state.computed_rows)


if __name__ == "__main__":
    main(*sys.argv[1:])
