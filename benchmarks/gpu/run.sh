#!/usr/bin/env bash
# The whole of benchmarks/gpu/run.py with the python3 of this machine; words go on to it. What it says is also left in
# gpu.log beside its results.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
# behind all others: an nvcc that is on PATH already is the one that is wanted
export PYTHONUNBUFFERED=1 OMP_NUM_THREADS="${OMP_NUM_THREADS:-4}" PATH="$PATH:/usr/local/cuda/bin"
out="${OUT:-benchmarks/results}"
before=""
for word in "$@"; do
    if [[ $before == -o ]]; then out="$word"; fi
    before="$word"
done
mkdir -p "$out"
"${PYTHON:-python3}" benchmarks/gpu/run.py "$@" 2>&1 | tee "$out/gpu.log"
