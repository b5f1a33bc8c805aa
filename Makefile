# `make serve` sets up and serves the built-in model; `make test` sets up and passes everything. `make help` lists the rest.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
PROTOS := $(sort $(shell find protos -name '*.proto'))

.DEFAULT_GOAL := help
.PHONY: help setup peers serve check test bench bench-smoke goals goals-long protos generate-protos lock

help: ## Lists these targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

setup: $(VENV)/.installed ## Makes the environment (once; again when the lock file changes)

$(VENV)/.installed: requirements/cpu.lock pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing the locked environment (about 4 GB, a few minutes) ..."
	@$(BIN)/pip install -qq --disable-pip-version-check --no-deps -r requirements/cpu.lock
	@$(BIN)/pip install -qq --disable-pip-version-check --no-deps --no-build-isolation -e .
	@$(BIN)/python -c "import torch" || { rm -rf $(VENV); echo "torch does not load here: its build with CUDA was installed without CUDA." \
	  "Set PIP_EXTRA_INDEX_URL to PyTorch's index of CPU wheels and try again."; exit 1; }
	@touch $@

peers: $(VENV)/.peers ## Adds what only benchmarks need: other systems to measure against

$(VENV)/.peers: requirements/peers.lock $(VENV)/.installed
	@$(BIN)/pip install -qq --disable-pip-version-check --no-deps -r requirements/peers.lock
	@touch $@

serve: setup ## Serves the built-in model here; Ctrl-C stops all of it
	@exec $(BIN)/neox-serve up

protos: setup ## Regenerates the protobuf code in neox_serve/
	@$(MAKE) --silent generate-protos OUT=.

# Apart from `protos` so that a test can generate into a folder of its own.
generate-protos:
	@$(BIN)/python -m grpc_tools.protoc -Iprotos --python_out=$(OUT) --grpc_python_out=$(OUT) \
	  --plugin=protoc-gen-mypy=$(BIN)/protoc-gen-mypy --mypy_out=quiet:$(OUT) \
	  --plugin=protoc-gen-mypy_grpc=$(BIN)/protoc-gen-mypy_grpc --mypy_grpc_out=quiet:$(OUT) $(PROTOS)

test: setup check ## Everything that must pass: checks, then all tests
	@$(BIN)/python -m pytest

bench: peers ## Measures against what users would pick instead, and how cost grows (about two hours, idle); see docs/benchmarks.md
	@$(BIN)/python -m tests.bench full
	@$(BIN)/python -m tests.bench ladder
	@$(BIN)/python -m tests.bench growth

bench-smoke: setup ## The main ratios from one round, in under 3 minutes
	@$(BIN)/python -m tests.bench smoke

goals: peers ## Measures every goal and prints a line for each; fails where one is short
	@$(BIN)/python -m tests.bench.goals

goals-long: setup ## Measures the goals that take hours, like `goals`
	@$(BIN)/python -m tests.bench.goals --long

lock: $(VENV)/.installed ## Resolves requirements/{cpu,gpu}.lock anew from pyproject.toml
	@for environment in cpu gpu; do \
	  $(BIN)/python requirements/lock.py $$environment > requirements/$$environment.lock.new && \
	  mv requirements/$$environment.lock.new requirements/$$environment.lock || exit 1; \
	done

check: setup ## Lint, format, types, imports, protos
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@$(BIN)/buf lint
