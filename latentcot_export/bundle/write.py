"""Writing a bundle, all or nothing: a hidden folder beside the output that is renamed when it is complete."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import stat
from pathlib import Path
from types import TracebackType

from latentcot_export.bundle import files as rules
from latentcot_export.bundle.manifest import MAX_BYTES, FileEntry, Manifest
from latentcot_export.bundle.read import Bundle, check_contents
from latentcot_export.errors import InputError
from latentcot_export.strict_json import shown


class BundleWriter:
    """Write a bundle: put files into `.folder`, then `.commit(manifest)`.

    ```
    with BundleWriter("out/tiny", force=False, source=checkpoint.folder) as writer:
        (writer.folder / "config.json").write_bytes(...)
        bundle = writer.commit(manifest)
    ```
    Leaving the block by any exception, Ctrl-C included, removes what was written and leaves an older bundle as it was;
    an OSError of the block becomes an InputError that says what to do. Missing parent folders are made, and removed
    again on failure. With `force` a bundle or an empty folder is replaced, and nothing else. `source` is the checkpoint
    folder, which may neither be, hold nor lie in the output. To look at the finished files before they take the
    place of an older bundle, call `.seal(manifest)`, then `.commit()`.

    A killed process can leave `.NAME.partial-*`, or between two renames of `force` the old bundle as `.NAME.old-*`.
    """

    def __init__(
        self,
        out: str | os.PathLike[str],
        force: bool = False,
        source: str | os.PathLike[str] | None = None,
    ) -> None:
        """Take the arguments; nothing is looked at or written before the `with` block is entered."""
        self.out = Path(out)
        self.force = force
        self.source = None if source is None else Path(source)
        self._target = self.out
        self._temporary: Path | None = None
        self._parents: list[Path] = []
        self._sealed: Manifest | None = None
        self._committed = False

    @property
    def folder(self) -> Path:
        """The temporary folder that takes the files. Errors: RuntimeError outside of the `with` block."""
        if self._temporary is None:
            raise RuntimeError("a BundleWriter has a folder only inside its with block")
        return self._temporary

    def __enter__(self) -> BundleWriter:
        """Make the temporary folder. Errors: InputError when the output may not be written."""
        try:
            # The parent is resolved and the name is not: a symbolic link as the output is refused, not followed.
            plain = self.out.name not in ("", "..")
            self._target = self.out.parent.resolve() / self.out.name if plain else self.out.resolve()
            self._check_output()
            for parent in reversed([parent for parent in self._target.parents if not parent.exists()]):
                parent.mkdir()
                self._parents.append(parent)
            self._temporary = rules.sibling(self._target, "partial")
            self._temporary.mkdir()
        except BaseException as error:
            self._clean_up()
            if isinstance(error, OSError):
                raise rules.unwritten(f"bundle {self.out}", error) from error
            if isinstance(error, ValueError):  # a NUL in the name
                raise InputError(f"bundle {shown(str(self.out))} was not written: {error}; correct its name") from error
            raise
        return self

    def seal(self, manifest: Manifest, progress: rules.Progress | None = None) -> Bundle:
        """Hash the files of `.folder` and write `latentcot.json`; the folder is then a bundle that can be opened.

        `manifest.files` is filled in here. `progress` gets (bytes hashed, bytes in all).
        Errors: InputError for a file that a bundle may not hold or that it lacks, OSError from the disk.
        """
        if self._sealed is not None:
            raise RuntimeError("this bundle is sealed already")
        sizes: dict[str, int] = {}
        for name in sorted(os.listdir(self.folder)):
            if not rules.is_flat_name(name) or name in (rules.MANIFEST, *rules.REPORTS):
                raise InputError(f"bundle {self.out} cannot hold {shown(name)}; leave that file out or rename it")
            sizes[name] = rules.status_of(self.folder / name, self._what(name)).st_size
        for name in rules.REQUIRED:
            if name not in sizes:
                raise InputError(f"bundle {self.out} was not written: it lacks {name}; write that file before commit")
        done, total = 0, sum(sizes.values())

        def count(chunk: int) -> None:
            nonlocal done
            done += chunk
            if progress is not None:
                progress(done, total)

        entries: dict[str, FileEntry] = {}
        for name, size in sizes.items():
            with rules.open_regular(self.folder / name, self._what(name)) as stream:
                entries[name] = FileEntry(size=size, sha256=rules.sha256_of(stream, size, self._what(name), count))
        try:
            sealed = dataclasses.replace(manifest, files=entries)
        except InputError as error:
            raise InputError(f"bundle {self.out} was not written: {error}; rename or leave out that file") from error
        text = sealed.to_bytes()
        if len(text) > MAX_BYTES:
            what = f"its manifest would have {len(text)} bytes and the limit is {MAX_BYTES}"
            raise InputError(f"bundle {self.out} was not written: {what}; state less in it")
        rules.write_durable(self.folder / rules.MANIFEST, text)
        self._sealed = sealed
        return Bundle(self.folder, sealed)

    def commit(self, manifest: Manifest | None = None, progress: rules.Progress | None = None) -> Bundle:
        """Seal the folder unless it is sealed, see it onto the disk and rename it to the output.

        Returns the bundle at its final place. Errors: InputError, OSError from the disk.
        """
        sealed = self._sealed if manifest is None else self.seal(manifest, progress).manifest
        if sealed is None:
            raise RuntimeError("commit takes the manifest, unless seal has taken it")
        check_contents(self.folder, sealed)
        for name in sorted(os.listdir(self.folder)):
            rules.sync(self.folder / name)
        rules.sync(self.folder)
        self._check_output()
        self._put_in_place()
        rules.sync(self._target.parent)
        self._committed = True
        return Bundle(self.out, sealed)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Remove the temporary folder unless it was committed. Errors: InputError in place of an OSError."""
        if self._committed:
            return
        folder = self.folder
        left = "" if self._clean_up() else f"; its temporary folder {folder} could not be removed, remove it"
        if error is None:
            raise RuntimeError("the block of a BundleWriter ended without commit, so nothing was written")
        # BrokenPipeError: standard output or error was closed, which is not about this bundle.
        if isinstance(error, OSError) and not isinstance(error, BrokenPipeError):
            raise InputError(f"{rules.unwritten(f'bundle {self.out}', error, folder)}{left}") from error
        if left:
            error.add_note(left.removeprefix("; "))

    def _what(self, name: str) -> str:
        return f"file {name} of bundle {self.out}"

    def _check_output(self) -> None:
        """Refuse an output whose writing would destroy something. Errors: InputError, OSError."""
        target = self._target
        if not target.name:
            raise InputError(f"output {self.out} is the root of a disk; name a folder")
        if self.source is not None:
            source = self.source.resolve()
            if source == target or source in target.parents or target in source.parents:
                raise InputError(
                    f"output {self.out} and checkpoint {self.source} are the same folder or one lies in the other; "
                    "choose an output outside of the checkpoint"
                )
        try:
            mode = os.lstat(target).st_mode
        except FileNotFoundError:
            return
        if not self.force:
            raise InputError(f"output {self.out} exists; choose another name or replace it with --force")
        if not stat.S_ISDIR(mode):
            raise InputError(f"output {self.out} exists and is not a folder; remove it or choose another name")
        held = os.listdir(target)
        if held and not (rules.MANIFEST in held and stat.S_ISREG(os.lstat(target / rules.MANIFEST).st_mode)):
            raise InputError(
                f"output {self.out} exists and is not a bundle (it has no {rules.MANIFEST}), "
                "so --force leaves it alone; remove it or choose another name"
            )

    def _put_in_place(self) -> None:
        """Rename the new folder to the output; an old one steps aside, and comes back if that fails."""
        aside = rules.sibling(self._target, "old") if os.path.lexists(self._target) else None
        removed = True
        try:
            if aside is not None:
                os.rename(self._target, aside)
            os.rename(self.folder, self._target)
        finally:
            # By what lies on the disk, not by how far the code got: Ctrl-C may come between any two lines.
            if aside is not None and os.path.lexists(aside):
                if os.path.lexists(self.folder):
                    os.rename(aside, self._target)
                else:
                    removed = rules.discard(aside)
        if not removed:
            raise InputError(f"bundle {self.out} was written, but the one it replaced stays; remove {aside}")

    def _clean_up(self) -> bool:
        """Remove all that was made; False when the temporary folder stays. A bundle in its final place stays too."""
        removed = self._temporary is None or rules.discard(self._temporary)
        for parent in reversed(self._parents):
            with contextlib.suppress(OSError):
                parent.rmdir()
        return removed
