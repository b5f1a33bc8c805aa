# `make serve` sets up and serves the built-in model. `make test` sets up and runs every check and test. `make help` lists the other targets.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
PROTOS := $(sort $(shell find protos -name '*.proto'))
# What `make test-changed` compares with, for example BASE=HEAD~3.
BASE ?= main

.DEFAULT_GOAL := help
.PHONY: help setup peers serve check format unit test test-changed docs docs-serve reference bench bench-smoke goals goals-long \
  protos generate-protos generate-client breaking lock wheels hooks

help: ## List these targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 17

setup: $(VENV)/.installed ## Create the environment, or update it after the lock file has changed

$(VENV)/.installed: requirements/cpu.lock requirements/install.py pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing the locked environment (about 5 GB on disk, a few minutes) ..."
	@$(BIN)/python requirements/install.py requirements/cpu.lock
	@touch $@

peers: $(VENV)/.peers ## Install the other systems that the benchmarks compare with

$(VENV)/.peers: requirements/peers.lock $(VENV)/.installed
	@$(BIN)/pip install -qq --disable-pip-version-check --no-deps -r requirements/peers.lock
	@touch $@

serve: setup ## Serve the built-in model on this machine; Ctrl-C stops it
	@exec $(BIN)/neox-serve up

test: setup check ## Run every check and every test
	@$(BIN)/python -m pytest

unit: setup ## Run the unit tests only: no Ray, no engines, under 2 minutes
	@$(BIN)/python -m pytest tests/unit

test-changed: setup ## Run the tests that mirror the modules changed since BASE (default: main)
	@$(BIN)/python -m tools.changed_tests $(BASE) | xargs --no-run-if-empty $(BIN)/python -m pytest

check: setup ## Check lint, format, types, import contracts and protos
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@$(BIN)/buf lint

format: setup ## Format the code and apply the fixes that ruff considers safe
	@$(BIN)/ruff check --fix --quiet .
	@$(BIN)/ruff format --quiet .

hooks: setup ## Install the git hooks of .pre-commit-config.yaml (needs pre-commit on the path)
	@pre-commit install

docs: setup ## Build the documentation site into site/; broken links fail
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

docs-serve: setup ## Serve the documentation site on http://127.0.0.1:8000 and rebuild it after every change
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs serve

reference: setup ## Regenerate docs/reference from the settings, the protos and the commands
	@$(BIN)/python -m tools.docs

protos: setup ## Regenerate the protobuf code in neox_serve/
	@$(MAKE) --silent generate-protos OUT=.

# A target of its own so that a test can generate into a temporary folder.
generate-protos:
	@$(BIN)/python -m grpc_tools.protoc -Iprotos --python_out=$(OUT) --grpc_python_out=$(OUT) \
	  --plugin=protoc-gen-mypy=$(BIN)/protoc-gen-mypy --mypy_out=quiet:$(OUT) \
	  --plugin=protoc-gen-mypy_grpc=$(BIN)/protoc-gen-mypy_grpc --mypy_grpc_out=quiet:$(OUT) $(PROTOS)

generate-client: setup ## Regenerate the blocking client from the asyncio client
	@$(BIN)/python -m tools.generate_sync_client

breaking: setup ## Fail if the public protos break clients built against BASE (default: main)
	@$(BIN)/buf breaking --against '.git#ref=$(BASE)' --path protos/neox_serve/v1

lock: $(VENV)/.installed ## Resolve requirements/{cpu,gpu}.lock again from pyproject.toml
	@for environment in cpu gpu; do \
	  $(BIN)/python requirements/lock.py $$environment > requirements/$$environment.lock.new && \
	  mv requirements/$$environment.lock.new requirements/$$environment.lock || exit 1; \
	done

wheels: setup ## Build the wheels of neox-serve and neox-serve-client into dist/
	@$(BIN)/python -m tools.build_wheels

bench: peers ## Compare with other systems and measure how cost grows (about two hours; see docs/operator/benchmarks.md)
	@$(BIN)/python -m tests.bench full
	@$(BIN)/python -m tests.bench ladder
	@$(BIN)/python -m tests.bench growth

bench-smoke: setup ## Measure the main ratios in one round (under 3 minutes)
	@$(BIN)/python -m tests.bench smoke

goals: peers ## Measure every goal and print a line for each; fails if one is missed
	@$(BIN)/python -m tests.bench.goals

goals-long: setup ## Measure the goals that take hours
	@$(BIN)/python -m tests.bench.goals --long
