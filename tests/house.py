"""The rules of the house as functions over source text, so that test_house.py can also show that they fail."""

from __future__ import annotations

import ast
import re
import sys

# Imports go to the left only. `api` is `latentcot_export/__init__.py`, the names a service imports.
FLOORS = (
    *("spec", "errors", "strict_json", "tables", "environment", "ops", "model", "checkpoint", "bundle", "runtime"),
    *("api", "validate", "bench", "export", "inspection", "cli"),
)
# A production service installs these floors with the core dependencies alone: whatever they import is listed here.
LIGHT = {
    "spec": {"spec"},
    "errors": {"spec", "errors"},
    "strict_json": {"errors", "strict_json"},
    "tables": {"errors", "strict_json", "tables", "rich"},
    "environment": {"tables", "environment", "onnxruntime"},
    "bundle": {"spec", "errors", "strict_json", "bundle", "numpy"},
    "runtime": {
        *("spec", "errors", "strict_json", "bundle", "runtime", "numpy", "onnxruntime", "tokenizers"),
        *("tensorrt", "tensorrt_rtx"),  # extras, imported when an engine is to be run
    },
    "api": {"spec", "errors", "strict_json", "bundle", "runtime", "api"},
}
PICKLING = {"pickle", "_pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
# The converter of one published pickle, which a person asks for by name. Only the restricted unpickler may stand there: it
# knows tensors and nothing to call, and the file reads the pickle's instructions before it.
UNPICKLING = "latentcot_export/checkpoint/unpickle.py"
EVALUATING = {"eval", "exec", "compile", "__import__"}


def module_of(path: str) -> str:
    """Dotted name of a source file, e.g. `latentcot_export/bundle/__init__.py` -> `latentcot_export.bundle`."""
    return path.removeprefix("cli/").removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def floor_of(module: str) -> str | None:
    """The floor a module of ours stands on, None for a module of somebody else."""
    parts = module.split(".")
    if parts[0] == "latentcot_cli":
        return "cli"
    if parts[0] != "latentcot_export":
        return None
    return parts[1] if len(parts) > 1 else "api"


def imported(tree: ast.Module, path: str) -> list[tuple[int, str]]:
    """(line, module) of every import, also inside functions and under TYPE_CHECKING; relative names resolved."""
    package = module_of(path).split(".")
    if not path.endswith("__init__.py"):
        package = package[:-1]
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            source = ".".join([*base, *([node.module] if node.module else [])])
            # `from latentcot_export import bundle` names a floor, `from latentcot_export import Name` names the api.
            names = [a.name for a in node.names] if source == "latentcot_export" else []
            floors = [f"{source}.{name}" for name in names if name in FLOORS]
            found += [(node.lineno, floor) for floor in floors]
            if len(floors) < len(names) or not names:
                found.append((node.lineno, source))
    return found


def floor_faults(source: str, path: str) -> list[str]:
    """Every import that goes up a floor, or that a light floor may not have."""
    here = floor_of(module_of(path))
    if here not in FLOORS:
        return [f"{path}: {here} is no floor of this house, give it a place in tests/house.py"]
    faults = []
    for line, module in imported(ast.parse(source), path):
        there = floor_of(module)
        top = module.split(".")[0]
        if there is not None and there not in FLOORS:
            faults.append(f"{path}:{line}: {module} is on no floor of this house")
        elif there is not None and FLOORS.index(there) > FLOORS.index(here):
            faults.append(f"{path}:{line}: {here} imports {module}, which is above it")
        elif here in LIGHT and top not in sys.stdlib_module_names and (there or top) not in LIGHT[here]:
            faults.append(f"{path}:{line}: {here} imports {module}, which a production service does not need")
    return faults


def unsafe_faults(source: str, path: str) -> list[str]:
    """Every way to run code out of a file or a string: pickles, torch.load, remote code, eval."""
    tree = ast.parse(source)
    faults = [
        f"{path}:{line}: imports {module}" for line, module in imported(tree, path) if module.split(".")[0] in PICKLING
    ]
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module in {"torch", "builtins"}:
            taken = {alias.name for alias in node.names} & {"load", *EVALUATING}
            faults += [f"{path}:{node.lineno}: imports {node.module}.{name}" for name in sorted(taken)]
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        if called in EVALUATING or called in {f"builtins.{name}" for name in EVALUATING}:
            faults.append(f"{path}:{node.lineno}: calls {called}")
        restricted = [word.value for word in node.keywords if word.arg == "weights_only"]
        allowed = called == "torch.load" and path == UNPICKLING
        allowed = allowed and [isinstance(each, ast.Constant) and each.value is True for each in restricted] == [True]
        if called in {"torch.load", "torch.hub.load", "torch.jit.load"} and not allowed:
            faults.append(f"{path}:{node.lineno}: calls {called}")
        for word in node.keywords:
            off = isinstance(word.value, ast.Constant) and word.value.value is False
            if word.arg in {"trust_remote_code", "allow_pickle"} and not off:
                faults.append(f"{path}:{node.lineno}: passes {word.arg} other than False")
    return faults


def family_faults(source: str, path: str, names: tuple[str, ...]) -> list[str]:
    """Every family of checkpoints named in code: identifiers and strings, but not docstrings, comments or `llama-bench`."""
    tree = ast.parse(source)
    word = re.compile(r"(?<![A-Za-z])(?:" + "|".join(sorted(names, reverse=True)) + r")(?![A-Za-z0-9]|-bench|\.cpp)")
    told = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    faults = []
    for node in ast.walk(tree):
        texts: list[object] = [
            getattr(node, field, None) for field in ("id", "attr", "name", "arg", "module", "asname")
        ]
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in told:
            texts.append(node.value)
        for text in texts:
            if isinstance(text, str) and (found := word.search(text)):
                faults.append(f"{path}:{getattr(node, 'lineno', 0)}: names the family {found.group()}")
    return faults


# Pieces, so that this file does not hold what it looks for.
_FOLDERS = "|".join(("work", "root", "home", "Users", "tmp", "opt", "mnt", "media", "srv"))
LOCAL_PATH = re.compile(r"(?<![\w.:/$})~*-])/(?:" + _FOLDERS + r")/[\w.]|[A-Za-z]:\\+Users\b")
_HOSTS = (r"pypi\.org", r"pythonhosted\.org", r"npmjs\.org", r"debian\.org", r"pytorch\.org/wh", r"anaconda\.org")
REGISTRY = re.compile("|".join(_HOSTS) + r"|--(?:extra-)?index" + r"-url|--find" + r"-links")


def text_faults(text: str, path: str, pattern: re.Pattern[str]) -> list[str]:
    """Every line of a file that holds what the pattern describes."""
    return [
        f"{path}:{number}: {found.group()!r}"
        for number, line in enumerate(text.splitlines(), 1)
        if (found := pattern.search(line))
    ]
