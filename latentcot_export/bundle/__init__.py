"""The bundle: one folder that export writes and that every tool and language reads.

Needs neither torch nor onnx: a service that only runs a bundle opens it with the standard library.
"""

from __future__ import annotations

from latentcot_export.bundle.manifest import FileEntry, Manifest
from latentcot_export.bundle.read import Bundle, open_bundle, read_manifest
from latentcot_export.bundle.reports import read_report, write_report
from latentcot_export.bundle.write import BundleWriter

__all__ = [
    "Bundle",
    "BundleWriter",
    "FileEntry",
    "Manifest",
    "open_bundle",
    "read_manifest",
    "read_report",
    "write_report",
]
