"""Which files a checkpoint folder holds: only regular files inside the folder are ever opened."""

from __future__ import annotations

import os
import shlex
import stat
from pathlib import Path

from latentcot_export.checkpoint.decider import DECIDER, PUBLISHED, VERB
from latentcot_export.errors import InputError

# What a bundle takes over from a checkpoint, in this order.
TRAVELLING_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "generation_config.json",
    "heldout.txt",
)
# Parts of tokenizers that predate tokenizer.json; nothing here reads them, but a new checkpoint should keep them.
OLDER_TOKENIZER_FILES = ("added_tokens.json", "chat_template.jinja", "merges.txt", "tokenizer.model", "vocab.json")
# The largest published tokenizer.json is about 40 MB; held-out text has no reason to be longer.
MAX_TRAVELLING_BYTES = 256 << 20
PICKLE_ENDINGS = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")


def open_folder(folder: str | os.PathLike[str]) -> Path:
    """`folder` as a path to an existing directory. Errors: InputError."""
    path = Path(folder)
    try:
        if path.is_dir():
            return path
        what = "is not a folder" if path.exists() else "does not exist"
    except (OSError, ValueError):  # too long, no permission on a parent, a NUL in the name
        what = "cannot be opened"
    name = str(path) if len(str(path)) <= 300 else f"{str(path)[:300]}..."
    raise InputError(f"{name} {what}; give the folder that holds config.json and model.safetensors")


def regular_file(folder: Path, name: str) -> Path | None:
    """The file `name` in `folder` or, where the name has one `/`, in a folder of it, or None when there is none.

    A link is followed only to a regular file inside the folder. Hugging Face's cache links its snapshots to blobs
    outside them, hence the advice in the message. Errors: InputError.
    """
    path = folder / name
    try:
        mode = path.lstat().st_mode
        if stat.S_ISLNK(mode) or (path.parent != folder and path.parent.is_symlink()):
            target = path.resolve(strict=True)
            if not target.is_relative_to(folder.resolve()):
                raise InputError(
                    f"{path} is a link out of the checkpoint folder, which is not followed; copy the folder with "
                    f"`cp -rL` and use the copy"
                )
            mode = target.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        if path.is_symlink():
            raise InputError(f"{path} is a link to nothing; download or copy the checkpoint again") from None
        return None
    except (OSError, RuntimeError, ValueError) as error:  # RuntimeError: a loop of links, before Python 3.13
        reason = error.strerror if isinstance(error, OSError) else "it is not usable as a path"
        raise InputError(f"{path} cannot be opened ({reason}); check the file and its permissions") from None
    if not stat.S_ISREG(mode):
        raise InputError(f"{path} is not a regular file; replace it with the file itself")
    return path


def tokenizer_files(folder: str | os.PathLike[str]) -> dict[str, Path]:
    """The files of a checkpoint folder that travel with the model into a bundle: {name: path}, those that are there.

    Errors: InputError when one is no regular file, leads out of the folder or is larger than 256 MiB.
    """
    return _existing(open_folder(folder), TRAVELLING_FILES)


def companion_files(folder: str | os.PathLike[str]) -> dict[str, Path]:
    """`tokenizer_files` and the older tokenizer formats: what a derived checkpoint keeps. Errors: InputError."""
    return _existing(open_folder(folder), TRAVELLING_FILES + OLDER_TOKENIZER_FILES)


def _existing(folder: Path, names: tuple[str, ...]) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for name in names:
        path = regular_file(folder, name)
        if path is None:
            continue
        size = path.stat().st_size
        if size > MAX_TRAVELLING_BYTES:
            raise InputError(
                f"{path} has {size} bytes, at most {MAX_TRAVELLING_BYTES} are taken over; shorten or remove it"
            )
        found[name] = path
    return found


def no_weights(folder: Path) -> InputError:
    """The sentence for a folder without safetensors weights: it depends on what is there instead."""
    try:
        names = sorted(os.listdir(folder))
    except OSError as error:
        return InputError(f"{folder} cannot be listed ({error.strerror}); check its permissions")
    pickles = [name for name in names if name.lower().endswith(PICKLE_ENDINGS)]
    if pickles:
        return InputError(
            f"{folder} has its weights only as a pickle ({pickles[0]}), which can run code when it is loaded and is "
            "never opened here; convert it to safetensors once, where you trust it, with "
            "`from_pretrained(...).save_pretrained(...)` of transformers"
        )
    if any(name.lower().endswith(".gguf") for name in names):
        return InputError(
            f"{folder} has its weights only as GGUF; load it with transformers' `gguf_file=` and save it with "
            "`save_pretrained` to get safetensors"
        )
    return InputError(
        f"{folder} has no model.safetensors and no model.safetensors.index.json; check that this is the checkpoint "
        "folder and that its download is complete"
    )


def refuse_pickled(folder: Path, name: str) -> None:
    """The sentence for weights `name` that are there as a pickle alone. Errors: InputError."""
    for ending in PICKLE_ENDINGS:
        pickled = (folder / name).with_suffix(ending)
        if os.path.lexists(pickled) and (name, pickled.name) == (DECIDER, PUBLISHED):
            raise InputError(
                f"{pickled} is a pickle, which is never opened here; convert it once with `latentcot {VERB} "
                f"{shlex.quote(str(folder))}`, which runs nothing of it"
            )
        if os.path.lexists(pickled):
            raise InputError(
                f"{pickled} is a pickle, which can run code when it is loaded and is never opened here; convert it to "
                f"{name} once, where you trust it"
            )
