"""What a bug report needs to know: versions, processor, memory, thread settings; no name of host, user or folder."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import re
from pathlib import Path
from typing import Any

from latentcot_export.tables import check_format, render

SCHEMA_VERSION = 1
_PACKAGES = (
    *("latentcot-export", "numpy", "onnxruntime", "onnxruntime-gpu", "tokenizers", "typer", "rich"),
    *("torch", "onnx", "onnxscript", "onnx-ir", "safetensors", "transformers"),
)
# What decides which kernels run and in which precision they can; the other hundred flags only fill a report.
_FEATURES = re.compile(r"sse4_[12]|avx\w*|fma|f16c|amx\w*|asimd\w*|sve\w*|i8mm|bf16|fphp")
_SETTINGS = re.compile(r"(OMP|KMP|MKL|OPENBLAS|GOMP|ORT|TOKENIZERS|LATENTCOT)_\w+|CUDA_VISIBLE_DEVICES")
# A setting of another kind could hold a path or a name; that it is set is all we tell.
_HARMLESS = re.compile(r"[A-Za-z0-9_,.:=+-]{1,64}")


def environment() -> dict[str, Any]:
    """The report of `env -o json`: plain JSON values; what cannot be found out is None.

    Works on a broken installation, where such a report is worth the most: it needs none of the packages it tells of.
    """
    return {
        "schema_version": SCHEMA_VERSION,
        "versions": {name: _installed(name) for name in _PACKAGES},
        "python": f"{platform.python_version()} {platform.python_implementation()}",
        "os": f"{platform.system()} {platform.release()} {platform.machine()}",
        "libc": " ".join(platform.libc_ver()).strip() or None,
        "cpu": cpu_name(),
        "cpu_features": cpu_features(),
        "cores": {"usable": usable_cores(), "logical": os.cpu_count()},
        "memory_gib": memory_gib(),
        "memory_limit_gib": _memory_limit(),
        "settings": {
            name: value if _HARMLESS.fullmatch(value) else "(set)"
            for name, value in sorted(os.environ.items())
            if _SETTINGS.fullmatch(name)
        },
        "onnxruntime_providers": _providers(),
    }


def text_of(report: dict[str, Any], form: str) -> str:
    """The report as text that ends in a newline, `form` one of the formats of `tables.render`. Errors: InputError."""
    check_format(form)
    if form == "json":
        return json.dumps(report, indent=2) + "\n"
    if form == "jsonl":
        return json.dumps(report) + "\n"
    rows: list[dict[str, Any]] = []
    for name, value in list(report.items())[1:]:  # the schema is of no use to eyes
        if isinstance(value, dict):
            rows += [{"name": f"{name}.{key}", "value": item} for key, item in value.items()]
        else:
            rows.append({"name": name, "value": " ".join(value) if isinstance(value, list) else value})
    return render(rows, ["name", "value"], form)


def usable_cores() -> int:
    """Logical cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def memory_gib() -> float | None:
    """Memory of the machine, GiB."""
    if not hasattr(os, "sysconf"):
        return None
    return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)


def cpu_name() -> str:
    """The processor as it calls itself."""
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def cpu_features() -> list[str]:
    """The vector and matrix extensions of the processor, sorted; empty where they cannot be found out."""
    flags = _cpuinfo("flags") or _cpuinfo("Features")
    return sorted(flag for flag in flags.split() if _FEATURES.fullmatch(flag))


def _cpuinfo(key: str) -> str:
    """A fact of the first core, '' where there is none. Linux only."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.partition(":")[0].strip() == key), "")


def _installed(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _memory_limit() -> float | None:
    """What the container allows, GiB; None without a limit. Linux, cgroup 2."""
    try:
        text = Path("/sys/fs/cgroup/memory.max").read_text("utf-8").strip()
    except OSError:
        return None
    return round(int(text) / 2**30, 1) if text.isdigit() else None


def _providers() -> list[str] | None:
    try:
        import onnxruntime
    except Exception:  # missing, or built for another machine: the other lines still help
        return None
    return list(onnxruntime.get_available_providers())
