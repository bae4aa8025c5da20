"""Writes `ort_api.hpp`: where in ONNX Runtime's table of functions the few that we call stand.

The C API is one struct of function pointers that only ever grows at its end, so a position found once holds for every
later release. No wheel ships the header, and the build must not need it: run this where one is at hand,

    python plugins/onnxruntime/make_ort_api.py FOLDER_OF_onnxruntime_c_api.h

and commit the result when it changed. Only facts are read (names, order, the release an entry came with, values of
enumerations); what is written is ours.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

HEADER = "onnxruntime_c_api.h"
CODES = "onnxruntime_error_code.h"  # newer releases keep the error codes in a file of their own
API_VERSION = 24  # the oldest release the op library runs on is 1.24: nothing newer may be used

# What we call, with the type we call it by. `Status` is null for success.
ENTRIES = {
    "CreateStatus": "Status* (*)(ErrorCode code, const char* message)",
    "GetErrorCode": "ErrorCode (*)(const Status* status)",
    "GetErrorMessage": "const char* (*)(const Status* status)",
    "ReleaseStatus": "void (*)(Status* status)",
    "CreateCustomOpDomain": "Status* (*)(const char* name, CustomOpDomain** domain)",
    "CustomOpDomain_Add": "Status* (*)(CustomOpDomain* domain, const CustomOp* op)",
    "AddCustomOpDomain": "Status* (*)(SessionOptions* options, CustomOpDomain* domain)",
    "ReleaseCustomOpDomain": "void (*)(CustomOpDomain* domain)",
    "KernelInfoGetAttribute_float": "Status* (*)(const KernelInfo* info, const char* name, float* value)",
    "KernelInfoGetAttribute_int64": "Status* (*)(const KernelInfo* info, const char* name, std::int64_t* value)",
    "KernelInfoGetAllocator": "Status* (*)(const KernelInfo* info, MemoryType type, Allocator** allocator)",
    "KernelInfo_GetConfigEntries": "Status* (*)(const KernelInfo* info, KeyValuePairs** entries)",
    "GetKeyValue": "const char* (*)(const KeyValuePairs* entries, const char* key)",
    "ReleaseKeyValuePairs": "void (*)(KeyValuePairs* entries)",
    "KernelContext_GetInputCount": "Status* (*)(const KernelContext* context, std::size_t* count)",
    "KernelContext_GetOutputCount": "Status* (*)(const KernelContext* context, std::size_t* count)",
    "KernelContext_GetInput": "Status* (*)(const KernelContext* context, std::size_t index, const Value** value)",
    "KernelContext_GetOutput": (
        "Status* (*)(KernelContext* context, std::size_t index, const std::int64_t* shape, std::size_t rank, "
        "Value** value)"
    ),
    "KernelContext_ParallelFor": (
        "Status* (*)(const KernelContext* context, void (*task)(void* argument, std::size_t index), "
        "std::size_t tasks, std::size_t batches, void* argument)"
    ),
    "KernelContext_GetGPUComputeStream": "Status* (*)(const KernelContext* context, void** stream)",
    "KernelContext_GetScratchBuffer": (
        "Status* (*)(const KernelContext* context, const MemoryInfo* place, std::size_t bytes, void** memory)"
    ),
    "AllocatorGetInfo": "Status* (*)(const Allocator* allocator, const MemoryInfo** place)",
    "AllocatorFree": "Status* (*)(Allocator* allocator, void* memory)",
    "ReleaseAllocator": "void (*)(Allocator* allocator)",
    "GetTensorMutableData": "Status* (*)(Value* value, void** data)",
    "GetTensorElementTypeAndShapeDataReference": (
        "Status* (*)(const Value* value, ElementType* type, const std::int64_t** shape, std::size_t* rank)"
    ),
}

# The fields of a custom op up to the last that release 1.24 reads, in order, with their types.
OP_FIELDS = {
    "version": "std::uint32_t",
    "CreateKernel": "void* (*)(const CustomOp* op, const Api* api, const KernelInfo* info)",
    "GetName": "const char* (*)(const CustomOp* op)",
    "GetExecutionProviderType": "const char* (*)(const CustomOp* op)",
    "GetInputType": "ElementType (*)(const CustomOp* op, std::size_t index)",
    "GetInputTypeCount": "std::size_t (*)(const CustomOp* op)",
    "GetOutputType": "ElementType (*)(const CustomOp* op, std::size_t index)",
    "GetOutputTypeCount": "std::size_t (*)(const CustomOp* op)",
    "KernelCompute": "void (*)(void* kernel, KernelContext* context)",
    "KernelDestroy": "void (*)(void* kernel)",
    "GetInputCharacteristic": "Characteristic (*)(const CustomOp* op, std::size_t index)",
    "GetOutputCharacteristic": "Characteristic (*)(const CustomOp* op, std::size_t index)",
    "GetInputMemoryType": "MemoryType (*)(const CustomOp* op, std::size_t index)",
    "GetVariadicInputMinArity": "int (*)(const CustomOp* op)",
    "GetVariadicInputHomogeneity": "int (*)(const CustomOp* op)",
    "GetVariadicOutputMinArity": "int (*)(const CustomOp* op)",
    "GetVariadicOutputHomogeneity": "int (*)(const CustomOp* op)",
    "CreateKernelV2": "Status* (*)(const CustomOp* op, const Api* api, const KernelInfo* info, void** kernel)",
    "KernelComputeV2": "Status* (*)(void* kernel, KernelContext* context)",
    "InferOutputShapeFn": "Status* (*)(const CustomOp* op, ShapeInferContext* context)",
    "GetStartVersion": "int (*)(const CustomOp* op)",
    "GetEndVersion": "int (*)(const CustomOp* op)",
    "GetMayInplace": "std::size_t (*)(int** inputs, int** outputs)",
    "ReleaseMayInplace": "void (*)(int* inputs, int* outputs)",
    "GetAliasMap": "std::size_t (*)(int** inputs, int** outputs)",
    "ReleaseAliasMap": "void (*)(int* inputs, int* outputs)",
}

# Our enumerations: the official one, and our name for each of its values that we use.
ENUMS = {
    "ErrorCode": ("OrtErrorCode", {"fail": "ORT_FAIL", "invalid_argument": "ORT_INVALID_ARGUMENT"}),
    "ElementType": (
        "ONNXTensorElementDataType",
        {
            name: f"ONNX_TENSOR_ELEMENT_DATA_TYPE_{official}"
            for name, official in {
                "any": "UNDEFINED",
                "float32": "FLOAT",
                "int32": "INT32",
                "int64": "INT64",
                "boolean": "BOOL",
                "float16": "FLOAT16",
                "bfloat16": "BFLOAT16",
            }.items()
        },
    ),
    "Characteristic": (
        "OrtCustomOpInputOutputCharacteristic",
        {"required": "INPUT_OUTPUT_REQUIRED", "optional": "INPUT_OUTPUT_OPTIONAL"},
    ),
    "MemoryType": ("OrtMemType", {"default_memory": "OrtMemTypeDefault"}),
}

OPAQUE = (
    *("Status", "Value", "KernelContext", "KernelInfo", "SessionOptions", "CustomOpDomain", "KeyValuePairs"),
    *("Allocator", "MemoryInfo"),
)

SINCE = re.compile(r"\\since\s+(?:Version\s+)?1\.(\d+)")
COMMENT = re.compile(r"/\*.*?\*/|//[^\n]*", re.DOTALL)
# An entry's name stands in one of the header's macros or after the calling convention of a plain function pointer.
NAMED = re.compile(
    r"(?:ORT_API2_STATUS\(|ORT_API_T\([^,]*,|ORT_CLASS_(?P<release>RELEASE)\(|\(\s*ORT_API_CALL\s*\*)\s*(?P<name>\w+)"
)


class HeaderError(Exception):
    """The header is not what this script knows how to read: one sentence."""


def body_of(text: str, struct: str) -> str:
    """What stands between the braces of a struct."""
    found = re.search(rf"^struct {struct} \{{(.*?)^\}};", text, re.DOTALL | re.MULTILINE)
    if found is None:
        raise HeaderError(f"{HEADER}: struct {struct} was not found; is this the C API's header?")
    return found[1]


def entries_of(header: str) -> list[tuple[str, int]]:
    """(name, the release 1.x it says it came with or 0) of every function of the table, in order."""
    entries, documented = [], 0
    for piece in re.split(r"(/\*.*?\*/|//[^\n]*\n)", body_of(header, "OrtApi"), flags=re.DOTALL):
        if piece.startswith("/"):
            found = SINCE.search(piece)
            documented = int(found[1]) if found else documented
            continue
        if re.search(r"^\s*#", piece, re.MULTILINE):
            raise HeaderError(f"{HEADER}: OrtApi depends on a preprocessor condition; read its order by hand")
        for statement in piece.split(";"):
            if not statement.strip():
                continue
            found = NAMED.search(statement)
            if found is None:
                raise HeaderError(f"{HEADER}: no name found in the entry {statement.split()!r}; teach NAMED its form")
            entries.append((("Release" if found["release"] else "") + found["name"], documented))
            documented = 0
    return entries


def fields_of(header: str) -> list[str]:
    """The names of a custom op's fields, in order."""
    statements = COMMENT.sub(" ", body_of(header, "OrtCustomOp")).split(";")
    names = [re.search(r"\(\s*ORT_API_CALL\s*\*\s*(\w+)\)|(\w+)\s*$", each.strip()) for each in statements]
    return [found[1] or found[2] for found in names if found]


def values_of(header: str, enum: str) -> dict[str, int]:
    """Every value of an enumeration by its name."""
    found = re.search(rf"typedef enum {enum} \{{(.*?)\}}", COMMENT.sub(" ", header), re.DOTALL)
    if found is None:
        raise HeaderError(f"{HEADER}: enum {enum} was not found; give the folder with all headers of the release")
    values: dict[str, int] = {}
    following = 0
    for item in filter(None, (piece.strip() for piece in found[1].split(","))):
        name, _, given = (part.strip() for part in item.partition("="))
        if given:
            following = values[given] if given in values else int(given, 0)
        values[name] = following
        following += 1
    return values


def positions_of(header: str) -> dict[str, int]:
    """Position of every entry we call. Errors: HeaderError for one that is missing, doubled or newer than 1.24."""
    entries = entries_of(header)
    names = [name for name, _ in entries]
    positions = {}
    for name in ENTRIES:
        if names.count(name) != 1:
            raise HeaderError(f"{HEADER}: {name} is there {names.count(name)} times; choose another function")
        positions[name] = names.index(name)
        if entries[positions[name]][1] > API_VERSION:
            raise HeaderError(f"{HEADER}: {name} is newer than release 1.{API_VERSION}; choose another function")
    return positions


def read_header(folder: Path) -> str:
    """The official header, with the file of the error codes where there is one. Errors: HeaderError."""
    if not (folder / HEADER).is_file():
        raise HeaderError(f"{folder}: there is no {HEADER} here; name the folder that has it")
    codes = folder / CODES
    return (folder / HEADER).read_text("utf-8") + (codes.read_text("utf-8") if codes.is_file() else "")


def typed(name: str, kind: str) -> str:
    """A declaration: `int (*)(char)` named f is `int (*f)(char)`."""
    return kind.replace("(*)", f"(*{name})", 1) if "(*)" in kind else f"{kind} {name}"


def folded(line: str) -> str:
    """A declaration of at most 120 columns."""
    if len(line) <= 120:
        return line
    at = line.rfind(", ", 0, 119)
    return line[: at + 1] + "\n" + " " * (len(line) - len(line.lstrip()) + 4) + line[at + 2 :]


def write_header(header: str) -> str:
    """The text of `ort_api.hpp`. Errors: HeaderError."""
    fields = fields_of(header)
    if fields[: len(OP_FIELDS)] != list(OP_FIELDS):
        raise HeaderError(f"{HEADER}: OrtCustomOp begins with other fields: {fields}; correct OP_FIELDS")
    out = [
        "// Written by make_ort_api.py, do not edit. What we use of ONNX Runtime's C API, bound by position.",
        "//",
        "// The table of functions only grows at its end, so these positions hold for 1.24 and every later release.",
        "#pragma once",
        "",
        "#include <cstddef>",
        "#include <cstdint>",
        "",
        *(f"struct Ort{name};" for name in OPAQUE),
        "",
        "namespace latentcot::ort {",
        "",
        f"constexpr std::uint32_t kApiVersion = {API_VERSION};",
        "",
        *(f"using {name} = Ort{name};" for name in OPAQUE),
        "struct Api;  // the table itself: an array of function pointers",
        "struct CustomOp;",
        "struct ShapeInferContext;",
        "",
    ]
    for name, (official, values) in ENUMS.items():
        known = values_of(header, official)
        pairs = ", ".join(f"{ours} = {known[theirs]}" for ours, theirs in values.items())
        out.append(f"enum class {name} : int {{ {pairs} }};")
    out += ["", "// What RegisterCustomOps is given to find the table.", "struct ApiBase {"]
    out += ["  const Api* (*GetApi)(std::uint32_t version);", "  const char* (*GetVersionString)();", "};", ""]
    out += ["// What ONNX Runtime reads of an op.", "struct CustomOp {"]
    out += [folded(f"  {typed(name, kind)};") for name, kind in OP_FIELDS.items()]
    out += ["};", "", "// Position and type of every function we call.", "namespace entry {", ""]
    for name, position in sorted(positions_of(header).items(), key=lambda item: item[1]):
        out += [f"struct {name} {{", f"  static constexpr std::size_t position = {position};"]
        out += [folded(f"  using Type = {ENTRIES[name]};"), "};"]
    out += ["", "}  // namespace entry", ""]
    out += ["// api_entry<entry::CreateStatus>(api)(code, text) calls the function of that name."]
    out += ["template <class Entry>", "inline typename Entry::Type api_entry(const Api* api) {"]
    out += ["  return reinterpret_cast<const typename Entry::Type*>(api)[Entry::position];", "}", ""]
    out += ["}  // namespace latentcot::ort"]
    return "\n".join(out) + "\n"


def main(arguments: list[str]) -> int:
    """`make_ort_api.py FOLDER`: writes ort_api.hpp beside this file; exit status 2 when it cannot."""
    if len(arguments) != 1:
        print(f"usage: make_ort_api.py FOLDER_OF_{HEADER}", file=sys.stderr)
        return 2
    try:
        text = write_header(read_header(Path(arguments[0])))
    except HeaderError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    Path(__file__).with_name("ort_api.hpp").write_text(text, "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
