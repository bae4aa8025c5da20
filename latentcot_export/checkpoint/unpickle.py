"""The one place where a pickle is opened, for `latentcot convert` alone: restricted, so that it can run nothing.

A pickle is a program. Three things keep this one to tensors: its instructions are first read as text and may name nothing
else (`_NAMES`); `torch.load(weights_only=True)` then follows them in an interpreter that knows little more; and both see
the same bytes, of bounded size. tests/house.py lets this file, and no other, call `torch.load`, and only so.
"""

from __future__ import annotations

import io
import pickletools
import re
import zipfile
from pathlib import Path
from typing import Any

import torch

from latentcot_export.errors import InputError
from latentcot_export.strict_json import shown

# A name and a few numbers for each of some hundred tensors.
MAX_PROGRAM_BYTES = 1 << 20
MAX_RECORDS = 1 << 14
_RECORD = re.compile(r"[^/]+/(data\.pkl|data/\d+|version|byteorder|\.format_version|\.storage_alignment|\.data/\w+)")
# All that a dict of tensors takes; the dtypes are values of the arguments that a module was made with.
_NAMES = {
    *("collections OrderedDict", "torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_parameter"),
    *(f"torch {kind}Storage" for kind in ("BFloat16", "Half", "Float", "Double", "Long", "Int", "Bool")),
    *(f"torch {dtype}" for dtype in ("bfloat16", "float16", "float32", "float64")),
}
# The other instructions that can name or make an object. torch.save writes none of them.
_MAKING = {"STACK_GLOBAL", "INST", "OBJ", "NEWOBJ", "NEWOBJ_EX", "EXT1", "EXT2", "EXT4", "PERSID", "NEXT_BUFFER"}


def unpickle(path: Path, max_bytes: int) -> Any:
    """What `torch.save` wrote to `path`, tensors on the CPU. Nothing of the file is executed.

    Errors: InputError for a file of more than `max_bytes`, one that is not an archive as torch.save has written it since
    1.6, one whose pickle asks for anything but tensors, and one that is damaged.
    """
    try:
        size = path.stat().st_size
        if size > max_bytes:
            raise InputError(f"{path} has {size} bytes, at most {max_bytes} hold what its config says; get it again")
        with path.open("rb") as file:
            data = file.read(max_bytes + 1)
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); check the file and its permissions") from None
    _check_program(path, _program(path, data))
    try:
        return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged program fails as it likes
        raise _broken(path, shown(str(error), 200)) from None


def _program(path: Path, data: bytes) -> bytes:
    """The pickle inside the archive, whose records are what torch.save writes and no larger than the file."""
    if data.startswith(b"version https://git-lfs"):
        raise InputError(f"{path} is a Git LFS pointer and not the weights; fetch them with `git lfs pull`")
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            records = archive.infolist()
            names = {record.filename for record in records}
            if not len(names) == len(records) <= MAX_RECORDS or len({name.split("/")[0] for name in names}) != 1:
                raise _broken(path, "a record is there twice, there are too many, or they lie in several folders")
            for record in records:
                if _RECORD.fullmatch(record.filename) is None:
                    raise _broken(path, f"it holds {shown(record.filename)}, which torch.save does not write")
                if record.compress_type != zipfile.ZIP_STORED or record.file_size > len(data):
                    raise _broken(path, f"{shown(record.filename)} is compressed")
            programs = [record for record in records if record.filename.endswith("/data.pkl")]
            if len(programs) != 1 or programs[0].file_size > MAX_PROGRAM_BYTES:
                raise _broken(path, f"it lacks data.pkl, or that has more than {MAX_PROGRAM_BYTES} bytes")
            return archive.read(programs[0])
    except InputError:
        raise
    except Exception as error:  # zipfile has no common error for what is wrong with an archive
        raise _broken(path, shown(str(error), 200)) from None


def _check_program(path: Path, program: bytes) -> None:
    """Every instruction, read and not run: what it names must be a tensor or a part of one."""
    try:
        for instruction, argument, _ in pickletools.genops(program):
            named = str(argument) if instruction.name == "GLOBAL" else instruction.name
            if named in _MAKING or (instruction.name == "GLOBAL" and named not in _NAMES):
                raise InputError(
                    f"{path} asks for {shown(named.replace(' ', '.'))}, where only tensors belong; nothing of it was run, "
                    "get the file from where you trust"
                )
    except InputError:
        raise
    except Exception as error:  # pickletools has no error of its own
        raise _broken(path, shown(str(error), 200)) from None


def _broken(path: Path, reason: str) -> InputError:
    return InputError(f"{path} is not an archive of torch.save: {reason}; download or save it again")
