"""Files of a bundle: which names and kinds of file are allowed, hashing, and putting them on disk for good."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import secrets
import shutil
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from latentcot_export.errors import InputError

MANIFEST = "latentcot.json"
REPORTS = ("validation.json", "bench.json")
REQUIRED = ("config.json", "model.onnx", "model.onnx.data")
REMEDY = "export it again or restore it"

_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}")
# Large enough that hashing runs at memory speed, small enough to be nothing beside the weights.
_CHUNK = 1 << 20
# No following of links, no waiting for the other end of a pipe. Windows has none of these and no such files either.
_FLAGS = os.O_RDONLY
for _flag in ("O_NOFOLLOW", "O_NONBLOCK", "O_CLOEXEC", "O_BINARY"):
    _FLAGS |= getattr(os, _flag, 0)

_ADVICE = {
    errno.ENOSPC: "free some space or write to another disk",
    errno.EDQUOT: "free some space of your quota or write to another disk",
    errno.EFBIG: "raise the file size limit (ulimit -f) or write to another disk",
    errno.EACCES: "choose a place that you may write to",
    errno.EPERM: "choose a place that you may write to",
    errno.EROFS: "choose a place that is not read-only",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.ENOTDIR: "choose a place whose parent is a folder",
}

Progress = Callable[[int, int], None]
"""Called with (bytes done, bytes in all), at least once a MiB."""


def is_flat_name(name: object) -> bool:
    """True for a name that stays in its folder on every system: [A-Za-z0-9._-], no leading dot, no `..`."""
    return isinstance(name, str) and _NAME.fullmatch(name) is not None and ".." not in name


def check_kind(status: os.stat_result, what: str) -> None:
    """Refuse all but a regular file with one name. Errors: InputError; hard links and symbolic links lead outside."""
    if stat.S_ISLNK(status.st_mode):
        raise _symbolic_link(what)
    if not stat.S_ISREG(status.st_mode):
        raise InputError(f"{what} is not a regular file; {REMEDY}")
    if status.st_nlink != 1:
        raise InputError(
            f"{what} has {status.st_nlink} hard links, so it can be changed from outside the bundle; "
            "copy it to a file of its own"
        )


def status_of(path: Path, what: str) -> os.stat_result:
    """`lstat` of a file that `check_kind` allows. Errors: InputError, also when it is missing."""
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        raise InputError(f"{what} is missing; {REMEDY}") from None
    except OSError as error:
        raise unreadable(what, error) from error
    check_kind(status, what)
    return status


@contextlib.contextmanager
def open_regular(path: Path, what: str) -> Iterator[BinaryIO]:
    """The file at `path`, opened for reading without following a link, after `check_kind` of what was opened.

    Errors: InputError, also for an I/O error while the block reads from it.
    """
    status_of(path, what)
    try:
        with os.fdopen(os.open(path, _FLAGS), "rb", buffering=0) as stream:
            check_kind(os.fstat(stream.fileno()), what)
            yield stream
    except BrokenPipeError:  # from a progress bar, not from the file
        raise
    except OSError as error:
        if error.errno == errno.ELOOP:  # it became a link after status_of
            raise _symbolic_link(what) from error
        raise unreadable(what, error) from error


def sha256_of(stream: BinaryIO, expected: int, what: str, progress: Callable[[int], None] | None = None) -> str:
    """The sha256, as 64 lower-case hex digits, of a stream that must hold `expected` bytes.

    Reads 1 MiB at a time, so memory does not grow with the file; `progress` gets the bytes of each chunk.
    Errors: InputError when the stream is shorter or longer.
    """
    digest, buffer, left = hashlib.sha256(), memoryview(bytearray(_CHUNK)), expected
    while count := stream.readinto(buffer[: min(left + 1, _CHUNK)]):  # type: ignore[attr-defined]
        left -= count
        if left < 0:
            break
        digest.update(buffer[:count])
        if progress is not None:
            progress(count)
    if left:
        raise InputError(f"{what} does not hold the {expected} bytes it should; {REMEDY}")
    return digest.hexdigest()


def read_limited(stream: BinaryIO, limit: int) -> bytes:
    """All bytes of a stream, or `limit` + 1 of them when it holds more."""
    parts: list[bytes] = []
    left = limit + 1
    while left and (part := stream.read(min(left, _CHUNK))):
        parts.append(part)
        left -= len(part)
    return b"".join(parts)


def unreadable(what: str, error: OSError) -> InputError:
    """The sentence for a file that the system refuses to read."""
    return InputError(f"{what} cannot be read ({_reason(error)}); check its permissions and its disk")


def unwritten(what: str, error: OSError, inside: Path | None = None) -> InputError:
    """The sentence for output that the system refused; a file outside of `inside` that it names is named."""
    advice = _ADVICE.get(error.errno or 0, "correct that and run it again")
    name = error.filename if isinstance(error.filename, str) else None
    ours = name is None or inside is None or Path(name).is_relative_to(inside)
    return InputError(f"{what} was not written: {_reason(error)}{'' if ours else f' ({name})'}; {advice}")


def _symbolic_link(what: str) -> InputError:
    return InputError(f"{what} is a symbolic link, which may lead out of the bundle; put the file itself there")


def _reason(error: OSError) -> str:
    return error.strerror or (str(error).splitlines() or [type(error).__name__])[0]


def sibling(path: Path, kind: str) -> Path:
    """A free hidden name beside `path`, on the same disk, so that a rename between them is atomic."""
    return path.with_name(f".{path.name}.{kind}-{secrets.token_hex(4)}")


def write_durable(path: Path, data: bytes) -> None:
    """Create `path` with `data` and see it onto the disk. Errors: OSError, FileExistsError when it is there."""
    with open(path, "xb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())


def replace_file(path: Path, content: bytes | memoryview) -> None:
    """Writes a file as a whole or not at all. Errors: InputError."""
    beside = sibling(path, "new")
    try:
        write_durable(beside, bytes(content))
        os.replace(beside, path)
    except OSError as error:
        raise unwritten(str(path), error) from None
    finally:
        beside.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """See a file or a folder onto the disk. Errors: OSError."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network file systems have no fsync of a folder; there is nothing more that can be done there.
        if not (error.errno in (errno.EINVAL, errno.ENOTSUP) and path.is_dir()):
            raise
    finally:
        os.close(descriptor)


def discard(folder: Path) -> bool:
    """Remove a folder and all it holds; False when something stays. A Ctrl-C meanwhile is raised when it is done."""
    interrupt: KeyboardInterrupt | None = None
    while os.path.lexists(folder):
        try:
            shutil.rmtree(folder)
        except KeyboardInterrupt as error:
            interrupt = error
        except OSError:
            break
    if interrupt is not None:
        raise interrupt
    return not os.path.lexists(folder)
