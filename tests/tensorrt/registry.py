"""Run by test_registry.py in a process of its own, with TensorRT's lean runtime on its path: what its registry makes of
the plugin library. Prints JSON."""

from __future__ import annotations

import json
import sys

import numpy as np
import tensorrt_lean_bindings as trt

NAMESPACE, VERSION = "latentcot", "1"
KEPT: list[np.ndarray] = []  # a PluginField points at its number and does not keep it


def fields_of(values: dict[str, int | float]) -> object:
    kinds = {int: (np.int32, trt.PluginFieldType.INT32), float: (np.float32, trt.PluginFieldType.FLOAT32)}
    made = []
    for name, value in values.items():
        dtype, kind = kinds[type(value)]
        KEPT.append(np.array([value], dtype))
        made.append(trt.PluginField(name, KEPT[-1], kind))
    return trt.PluginFieldCollection(made)


def facts(plugin: object) -> dict[str, object]:
    """What 11.4's bindings pass on to a plugin of C++: its properties. Methods they give to plugins of Python alone."""
    kinds = [trt.PluginCapabilityType.CORE, trt.PluginCapabilityType.BUILD, trt.PluginCapabilityType.RUNTIME]
    core, build, runtime = (plugin.get_capability_interface(kind) for kind in kinds)  # type: ignore[attr-defined]
    return {
        "core": [core.plugin_name, core.plugin_version, core.plugin_namespace],
        "interfaces": [[each.interface_info.kind, each.interface_info.major] for each in (core, build, runtime)],
        "outputs": build.num_outputs,
        "formats": build.format_combination_limit,
        "fields": [build.metadata_string, build.timing_cache_id],
    }


def main(library: str, cases: dict[str, dict[str, object]]) -> dict[str, object]:
    registry = trt.get_plugin_registry()
    before = {creator.name for creator in registry.all_creators if creator.plugin_namespace == NAMESPACE}
    handle = registry.load_library(library)
    mine = [creator for creator in registry.all_creators if creator.plugin_namespace == NAMESPACE]
    answer: dict[str, object] = {
        "version": trt.__version__,
        "before": sorted(before),
        "creators": sorted([each.name, each.plugin_version, each.interface_info.kind] for each in mine),
        "cases": {},
    }
    for name, case in cases.items():
        creator = registry.get_creator(case["name"], VERSION, NAMESPACE)
        plugin = creator.create_plugin("node", fields_of(case["fields"]), trt.TensorRTPhase.BUILD)
        again = creator.create_plugin("node", fields_of(case["fields"]), trt.TensorRTPhase.RUNTIME)
        answer["cases"][name] = {"made": facts(plugin), "again": facts(again)}  # type: ignore[index]
    first = next(iter(cases.values()))
    refused = registry.get_creator(first["name"], VERSION, NAMESPACE)
    wrong = refused.create_plugin("node", fields_of({**first["fields"], "fixed": 0}), trt.TensorRTPhase.BUILD)  # type: ignore[dict-item]
    answer["refused"] = wrong is None
    answer["other version"] = registry.get_creator(first["name"], "2", NAMESPACE) is None
    registry.deregister_library(handle)
    answer["after"] = [each.name for each in registry.all_creators if each.plugin_namespace == NAMESPACE]
    return answer


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], json.loads(sys.stdin.read()))))
