"""Loads graphs as device cuda does, and says what became of the nodes of each: LIBRARY GRAPH [GRAPH ...]."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import onnx
import onnxruntime as ort

from latentcot_export.runtime.device import open_session


def main(library: str, *graphs: str) -> None:
    print(ort.__version__)
    for graph in graphs:
        options = ort.SessionOptions()
        options.register_custom_ops_library(library)
        options.log_severity_level = 4
        with tempfile.TemporaryDirectory() as folder:
            options.optimized_model_filepath = str(Path(folder) / "seen.onnx")
            try:
                # a session that is to be captured is refused where a node is not on the device
                open_session(graph, options, "cuda")
            except Exception as error:  # onnxruntime's exceptions share no public base class
                print(f"{graph}: refused: {str(error).splitlines()[0]}")
                continue
            seen = onnx.load(Path(folder) / "seen.onnx", load_external_data=False).graph
        copies = sum(node.op_type.startswith("Memcpy") for node in seen.node)
        print(f"{graph}: {len(seen.node)} nodes, {copies} copies")


if __name__ == "__main__":
    main(*sys.argv[1:])
