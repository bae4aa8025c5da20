#!/usr/bin/env bash
# The whole of benchmarks/gpu/run.py with the python3 of this machine; words go on to it.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
export PYTHONUNBUFFERED=1 OMP_NUM_THREADS="${OMP_NUM_THREADS:-4}"
exec "${PYTHON:-python3}" benchmarks/gpu/run.py "$@"
