"""The positions by which the op library calls ONNX Runtime."""

from __future__ import annotations

import ctypes
import importlib.util
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import onnxruntime as ort
import pytest

FOLDER = Path(__file__).resolve().parents[2] / "plugins" / "onnxruntime"


def load_generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_ort_api", FOLDER / "make_ort_api.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


make_ort_api = load_generator()
OURS = (FOLDER / "ort_api.hpp").read_text("utf-8")
POSITIONS = {
    name: int(position)
    for name, position in re.findall(r"struct (\w+) \{\s+static constexpr std::size_t position = (\d+);", OURS)
}


def test_every_entry_of_the_generator_has_a_position() -> None:
    assert set(POSITIONS) == set(make_ort_api.ENTRIES)
    assert len(set(POSITIONS.values())) == len(POSITIONS)
    assert f"kApiVersion = {make_ort_api.API_VERSION};" in OURS


def test_the_committed_header_is_what_the_official_one_gives(official: Path) -> None:
    assert make_ort_api.write_header(make_ort_api.read_header(official)) == OURS


# A compiler reads the official header, so that the generator's own reading is checked too. Two functions have the same
# type when their arguments have, where an enumeration is an int and a pointer to a struct any pointer to a struct.
COMPARISON = """
#include "onnxruntime_c_api.h"
#include "ort_api.hpp"
#include <type_traits>
namespace ours = latentcot::ort;
struct AnyStruct;
template <class T> struct Plain {
  using type = std::conditional_t<std::is_enum_v<T>, int, std::conditional_t<std::is_class_v<T>, AnyStruct, T>>;
};
template <class T> struct Plain<const T> { using type = const typename Plain<T>::type; };
template <class T> struct Plain<T*> { using type = typename Plain<T>::type*; };
template <class R, class... A> struct Plain<R(A...)> {
  using type = typename Plain<R>::type(typename Plain<A>::type...);
};
template <class R, class... A> struct Plain<R(A...) noexcept> : Plain<R(A...)> {};
template <class A, class B> constexpr bool alike = std::is_same_v<typename Plain<A>::type, typename Plain<B>::type>;
#define ENTRY(name) \\
  static_assert(offsetof(OrtApi, name) == ours::entry::name::position * sizeof(void*), #name); \\
  static_assert(alike<decltype(OrtApi::name), ours::entry::name::Type>, #name);
#define FIELD(name) \\
  static_assert(offsetof(OrtCustomOp, name) == offsetof(ours::CustomOp, name), #name); \\
  static_assert(alike<decltype(OrtCustomOp::name), decltype(ours::CustomOp::name)>, #name);
#define VALUE(value, official) \\
  static_assert(static_cast<int>(ours::value) == static_cast<int>(official), #official);
static_assert(alike<decltype(OrtApiBase::GetApi), decltype(ours::ApiBase::GetApi)>);
static_assert(offsetof(OrtApiBase, GetVersionString) == offsetof(ours::ApiBase, GetVersionString));
"""


def comparison() -> str:
    lines = [f"ENTRY({name})" for name in make_ort_api.ENTRIES]
    lines += [f"FIELD({name})" for name in make_ort_api.OP_FIELDS]
    for enum, (_, values) in make_ort_api.ENUMS.items():
        lines += [f"VALUE({enum}::{name}, {value})" for name, value in values.items()]
    return COMPARISON + "\n".join(lines) + "\n"


def compile_comparison(official: Path, ours: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    compiler = shutil.which("c++") or shutil.which("g++")
    if compiler is None:
        pytest.skip("there is no C++ compiler")
    source = folder / "comparison.cpp"
    source.write_text(comparison(), "utf-8")
    command = [compiler, "-std=c++20", "-fsyntax-only", f"-I{official}", f"-I{ours}", str(source)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


def test_a_compiler_finds_every_position_and_type_in_the_official_header(official: Path, tmp_path: Path) -> None:
    done = compile_comparison(official, FOLDER, tmp_path)
    assert done.returncode == 0, done.stderr[:4000]


@pytest.mark.parametrize(
    ("good", "bad"),
    [
        ("position = 26;", "position = 27;"),
        ("float* value", "double* value"),
        ("optional = 1", "optional = 2"),
        ("  int (*GetEndVersion)(const CustomOp* op);\n", ""),
    ],
)
def test_the_comparison_can_fail(official: Path, tmp_path: Path, good: str, bad: str) -> None:
    assert OURS.count(good) == 1
    (tmp_path / "ort_api.hpp").write_text(OURS.replace(good, bad), "utf-8")
    assert compile_comparison(official, tmp_path, tmp_path).returncode != 0


class Api:
    """The installed ONNX Runtime's table, called by our positions."""

    def __init__(self) -> None:
        # the wheel's Python module hides the table, the library that lies beside it does not
        found = sorted((Path(ort.__file__).parent / "capi").glob("libonnxruntime.so.*"))
        if not found:
            pytest.skip("this build of ONNX Runtime ships no libonnxruntime.so")
        library = ctypes.CDLL(str(found[0]))
        library.OrtGetApiBase.restype = ctypes.POINTER(ctypes.c_void_p * 2)
        get_api, get_version = library.OrtGetApiBase().contents
        self.version = ctypes.CFUNCTYPE(ctypes.c_char_p)(get_version)().decode()
        self.table = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_uint32)(get_api)(make_ort_api.API_VERSION)

    def call(self, name: str, result: type | None, *arguments: object) -> object:
        """Arguments are ctypes values; their types are the signature."""
        place = ctypes.cast(self.table, ctypes.POINTER(ctypes.c_void_p))[POSITIONS[name]]
        return ctypes.CFUNCTYPE(result, *(type(each) for each in arguments))(place)(*arguments)


@pytest.fixture(scope="module")
def api() -> Api:
    return Api()


def test_the_installed_release_has_the_table(api: Api) -> None:
    assert api.version == ort.__version__
    assert api.table


def test_a_status_comes_back_as_it_was_made(api: Api) -> None:
    status = api.call("CreateStatus", ctypes.c_void_p, ctypes.c_int(2), ctypes.c_char_p(b"a sentence"))
    assert api.call("GetErrorCode", ctypes.c_int, ctypes.c_void_p(status)) == 2
    assert api.call("GetErrorMessage", ctypes.c_char_p, ctypes.c_void_p(status)) == b"a sentence"
    api.call("ReleaseStatus", None, ctypes.c_void_p(status))


def test_a_domain_is_made_and_released(api: Api) -> None:
    domain = ctypes.c_void_p()
    place = ctypes.c_void_p(ctypes.addressof(domain))
    made = api.call("CreateCustomOpDomain", ctypes.c_void_p, ctypes.c_char_p(b"latentcot.test"), place)
    assert made is None
    assert domain.value
    api.call("ReleaseCustomOpDomain", None, domain)


# The forms an entry takes in the official header, in our words.
SAMPLE = """
typedef enum Letters { A, /* first, with a comma */ B = 4, C, D = B } Letters;
struct OrtApi {
  Status*(ORT_API_CALL* Make)(int code)NO_EXCEPTION;
  /** \\since Version 1.24. */
  ORT_API2_STATUS(Fetch, _In_ const Thing* thing,
                  _Outptr_ Thing** other);
  // a remark with ; in it
  ORT_CLASS_RELEASE(Thing);
  ORT_API_T(void, Set, int value);  // since the comma
  /** \\since 1.25 */
  ORT_API2_STATUS(Newer, int value);
};
struct OrtCustomOp {
  uint32_t version;  // a remark; with a semicolon
  void*(ORT_API_CALL* Create)(_In_ const struct OrtCustomOp* op, int (*unnamed)(char));
};
"""


def test_the_generator_reads_every_form() -> None:
    named = [("Make", 0), ("Fetch", 24), ("ReleaseThing", 0), ("Set", 0), ("Newer", 25)]
    assert make_ort_api.entries_of(SAMPLE) == named
    assert make_ort_api.fields_of(SAMPLE) == ["version", "Create"]
    assert make_ort_api.values_of(SAMPLE, "Letters") == {"A": 0, "B": 4, "C": 5, "D": 4}


@pytest.mark.parametrize(
    ("entry", "change", "sentence"),
    [
        ("Newer", ("", ""), "newer than release 1.24"),
        ("Gone", ("", ""), "there 0 times"),
        ("Make", ("Set", "Make"), "there 2 times"),
        ("Make", ("struct OrtApi {", "struct OrtApi {\n#if A\n"), "preprocessor"),
        ("Make", ("ORT_API_T(void, Set, int value)", "SOMETHING_NEW"), "no name"),
        ("Make", ("struct OrtApi ", "struct Other "), "not found"),
    ],
)
def test_the_generator_refuses(
    entry: str, change: tuple[str, str], sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(make_ort_api, "ENTRIES", {entry: ""})
    with pytest.raises(make_ort_api.HeaderError, match=sentence):
        make_ort_api.positions_of(SAMPLE.replace(*change) if change[0] else SAMPLE)


@pytest.mark.parametrize("arguments", [[], ["nowhere"], ["a", "b"]])
def test_the_generator_says_what_it_needs(arguments: list[str], tmp_path: Path) -> None:
    command = [sys.executable, str(FOLDER / "make_ort_api.py"), *arguments]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert "onnxruntime_c_api.h" in done.stderr
