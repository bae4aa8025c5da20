"""Opening a bundle, fail-closed: the schema first, then every path, every size, every sha256; loading comes after."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import stat
from pathlib import Path

from latentcot_export.bundle import files as rules
from latentcot_export.bundle.manifest import MAX_BYTES, Manifest
from latentcot_export.errors import InputError
from latentcot_export.strict_json import shown


@dataclasses.dataclass(frozen=True)
class Bundle:
    """A bundle whose files were what its manifest states when it was opened."""

    folder: Path
    manifest: Manifest

    def path(self, name: str) -> Path:
        """Where a file that the manifest lists lies. Errors: InputError for any other name, the reports included."""
        if name not in self.manifest.files:
            raise InputError(f"bundle {self.folder} has no file {shown(name)}; it has {', '.join(self.manifest.files)}")
        return self.folder / name

    def read_bytes(self, name: str) -> bytes:
        """The content of a listed file, all in memory; the very bytes that are returned have the stated sha256.

        Errors: InputError when the file has changed since the bundle was opened.
        """
        path, entry, what = self.path(name), self.manifest.files[name], _what(name, self.folder)
        with rules.open_regular(path, what) as stream:
            data = rules.read_limited(stream, entry["size"])
        if hashlib.sha256(data).hexdigest() != entry["sha256"]:
            raise _hash_error(what)
        return data


def read_manifest(folder: str | os.PathLike[str]) -> Manifest:
    """The manifest of a bundle, its own digest checked, the other files not looked at.

    Errors: InputError when `folder` is no bundle or `latentcot.json` is not as it was written.
    """
    folder = Path(folder)
    path, what = folder / rules.MANIFEST, _what(rules.MANIFEST, folder)
    make_one = "make one with `latentcot export CHECKPOINT BUNDLE`"
    try:
        if not stat.S_ISDIR(os.stat(folder).st_mode):
            raise InputError(f"bundle {folder} is not a folder; {make_one}")
        os.lstat(path)
    except FileNotFoundError:
        problem = f"is not a bundle, it has no {rules.MANIFEST}" if folder.is_dir() else "does not exist"
        raise InputError(f"folder {folder} {problem}; {make_one}") from None
    except OSError as error:
        raise rules.unreadable(f"bundle {folder}", error) from error
    except ValueError as error:  # a NUL in the name
        raise InputError(f"bundle {shown(str(folder))} cannot be opened ({error}); correct its name") from error
    with rules.open_regular(path, what) as stream:
        raw = rules.read_limited(stream, MAX_BYTES)
    return Manifest.from_bytes(raw, what)


def open_bundle(folder: str | os.PathLike[str], progress: rules.Progress | None = None) -> Bundle:
    """Verify a bundle: schema, then containment of every path, then all sizes, then all sha256 (1 MiB at a time).

    The folder holds the listed files, `latentcot.json` and at most the two reports, each a regular file with one name:
    no symbolic link, no hard link, no folder, nothing else. `progress` gets (bytes hashed, bytes in all).
    Errors: InputError, one sentence that names the file, what is wrong with it and what to do.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    listed = manifest.files
    check_contents(folder, manifest)
    for name, entry in listed.items():
        size = rules.status_of(folder / name, _what(name, folder)).st_size
        if size != entry["size"]:
            raise _size_error(_what(name, folder), size, entry["size"])
    done, total = 0, sum(entry["size"] for entry in listed.values())

    def count(chunk: int) -> None:
        nonlocal done
        done += chunk
        if progress is not None:
            progress(done, total)

    for name, entry in listed.items():
        what = _what(name, folder)
        with rules.open_regular(folder / name, what) as stream:
            if rules.sha256_of(stream, entry["size"], what, count) != entry["sha256"]:
                raise _hash_error(what)
    return Bundle(folder, manifest)


def check_contents(folder: Path, manifest: Manifest) -> None:
    """Containment: exactly the listed files, the manifest and at most the reports, each a regular file with one name.

    Errors: InputError.
    """
    allowed = {*manifest.files, rules.MANIFEST, *rules.REPORTS}
    try:
        found = sorted(os.listdir(folder))
    except OSError as error:
        raise rules.unreadable(f"bundle {folder}", error) from error
    for name in found:
        if name not in allowed:
            raise InputError(
                f"bundle {folder} holds {shown(name)}, which its manifest does not list; move it out of the bundle"
            )
    for name in sorted({*manifest.files, *found}):
        rules.status_of(folder / name, _what(name, folder))


def _what(name: str, folder: Path) -> str:
    return f"file {name} of bundle {folder}"


def _size_error(what: str, size: int, expected: int) -> InputError:
    return InputError(f"{what} has {size} bytes where its manifest states {expected}; {rules.REMEDY}")


def _hash_error(what: str) -> InputError:
    return InputError(f"{what} does not have the sha256 its manifest states; {rules.REMEDY}")
