"""What a bundle can run on: the processor, or a CUDA device where ONNX Runtime has one. One sentence where it has not."""

from __future__ import annotations

import onnxruntime as ort

from ..bundle import Bundle
from ..errors import InputError
from ..strict_json import shown
from .cuda_driver import require_gpu
from .rtx_engine import TARGET as RTX

DEVICES = ("cpu", "cuda")
PASS = "pass.onnx"
_CUDA = "CUDAExecutionProvider"
# What to do where ONNX Runtime refuses a graph.
REMEDIES = {
    "cpu": "export it again with this version of latentcot-export",
    "cuda": "check that `nvidia-smi` shows a GPU and that CUDA and cuDNN are those of onnxruntime-gpu, or use device cpu",
}


def check_device(bundle: Bundle, device: str, logits: bool = False) -> None:
    """Refuses a device that this bundle or this machine does not have, or, where `logits` are wanted, that gives none.

    Errors: InputError.
    """
    if device not in DEVICES:
        raise InputError(f"device is {shown(device)}, it must be one of {', '.join(DEVICES)}; choose one of these")
    target = bundle.manifest.target
    if target == "tensorrt":
        if device != "cuda":
            raise InputError(
                f"bundle {bundle.folder} has the target tensorrt, which runs on device cuda alone; use that"
            )
        return
    if device == "cpu":
        return
    if target == RTX:  # RtxSession looks for the library and a GPU itself
        if logits:
            raise InputError(
                f"the engine of bundle {bundle.folder} chooses tokens and keeps no logits to compare; use device cpu, "
                "which runs the graph that it was built of"
            )
        return
    if target != "ort":
        raise InputError(
            f"device {device} is for bundles of the targets ort, tensorrt and {RTX} and bundle {bundle.folder} is "
            f"{target}; export it with --target ort, or use device cpu"
        )
    if bundle.manifest.rounds is not None:
        raise InputError(
            f"bundle {bundle.folder} refines its prompts ({bundle.manifest.prefill}), which runs on device cpu alone; use "
            "that, or export it without --prefill"
        )
    if PASS not in bundle.manifest.files:
        raise InputError(
            f"bundle {bundle.folder} has no {PASS}, which device {device} runs: an older version wrote it; export it again"
        )
    if _CUDA not in ort.get_available_providers():
        raise InputError(
            f"device {device} needs onnxruntime-gpu and ONNX Runtime {ort.__version__} is installed here without CUDA; "
            "install onnxruntime-gpu in place of onnxruntime, or use device cpu"
        )


def open_session(graph: str | bytes, options: ort.SessionOptions, device: str) -> ort.InferenceSession:
    """ONNX Runtime's session of a graph, a file or its content, all of it on the device.

    Errors: InputError without one, ONNX Runtime's own.
    """
    if device == "cpu":
        return ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    require_gpu()  # without one ONNX Runtime would say that it lacks an operator of some dtype
    options.enable_mem_pattern = False  # a captured pass keeps the addresses it was captured with
    settings = {
        "device_id": "0",
        "enable_cuda_graph": "1",
        "use_tf32": "0",  # 10 bits of a mantissa would move depths
        "arena_extend_strategy": "kSameAsRequested",
    }
    # without the provider ONNX Runtime would warn and go on, on the processor
    session = ort.InferenceSession(graph, options, providers=[(_CUDA, settings)], enable_fallback=0)
    if _CUDA not in session.get_providers():
        raise InputError(
            f"device {device}: ONNX Runtime {ort.__version__} finds no CUDA device it can use; {REMEDIES[device]}"
        )
    return session
