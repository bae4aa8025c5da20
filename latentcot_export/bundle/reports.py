"""`validation.json` and `bench.json`: measurements kept in the bundle they measured, outside of its hashes.

The runtime never reads them. Each records the digest of the manifest it measured, so that a report cannot vouch for a
bundle it has not seen.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

from latentcot_export import strict_json
from latentcot_export.bundle import files as rules
from latentcot_export.bundle.read import Bundle, read_manifest
from latentcot_export.errors import InputError
from latentcot_export.strict_json import shown

MAX_BYTES = 16 << 20
DIGEST_KEY = "manifest_digest"


def write_report(bundle: Bundle | str | os.PathLike[str], name: str, payload: dict[str, Any]) -> Path:
    """Write `payload` as report `name` (`validation.json` or `bench.json`), atomically, and return its path.

    The key `manifest_digest` is added; non-finite floats become null. The temporary file lies beside the bundle and not
    in it, because a reader that opens the bundle meanwhile refuses unlisted files. An older report is replaced.
    Errors: InputError when the bundle or its parent folder cannot be written.
    """
    _check_name(name)
    folder = bundle.folder if isinstance(bundle, Bundle) else Path(bundle)
    manifest = bundle.manifest if isinstance(bundle, Bundle) else read_manifest(folder)
    text = strict_json.readable({**strict_json.finite(payload), DIGEST_KEY: manifest.digest()})
    real = folder.resolve()
    temporary = rules.sibling(real.with_name(f"{real.name}.{name}"), "tmp")
    try:
        rules.write_durable(temporary, text)
        os.replace(temporary, real / name)
        rules.sync(real)
    except OSError as error:
        raise rules.unwritten(f"report {name} of bundle {folder}", error) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()
    return folder / name


def read_report(
    bundle: Bundle | str | os.PathLike[str], name: str, *, allow_stale: bool = False
) -> dict[str, Any] | None:
    """The report `name` of a bundle; None when there is none, or when it measured another manifest than this one.

    `allow_stale` returns such a stale report too; its `manifest_digest` says which manifest it measured.
    Errors: InputError when the report is not a JSON object or not a regular file.
    """
    _check_name(name)
    folder = bundle.folder if isinstance(bundle, Bundle) else Path(bundle)
    manifest = bundle.manifest if isinstance(bundle, Bundle) else read_manifest(folder)
    path, what = folder / name, f"report {name} of bundle {folder}"
    if not os.path.lexists(path):
        return None
    with rules.open_regular(path, what) as stream:
        raw = rules.read_limited(stream, MAX_BYTES)
    remedy = f"remove it, and run `latentcot {'bench' if name == 'bench.json' else 'validate'}` for a new one"
    report = strict_json.parse(raw, what, MAX_BYTES, remedy)
    if not isinstance(report, dict):
        raise InputError(f"{what} holds no JSON object; {remedy}")
    return report if allow_stale or report.get(DIGEST_KEY) == manifest.digest() else None


def _check_name(name: str) -> None:
    if name not in rules.REPORTS:
        raise InputError(f"{shown(name)} is not a report; the reports are {' and '.join(rules.REPORTS)}")
