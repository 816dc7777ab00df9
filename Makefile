# Every target sets up what it needs in .venv, and again only after pyproject.toml or constraints.txt changed.
#
#   PYTHON     the interpreter that .venv is made with: make test PYTHON=python3.12
#   PIP_FLAGS  more options for pip. On Linux, torch comes with several gigabytes of CUDA libraries; to go without a GPU
#              and without them, point pip at PyTorch's index of CPU builds (named on pytorch.org) with --extra-index-url.
#   WORKERS    processes that run tests, one thread each: at most 4, no more than there are cores

PYTHON ?= python3
PIP_FLAGS ?=
WORKERS ?= logical

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PYTEST := $(BIN)/python -m pytest -q -n $(WORKERS) --maxprocesses 4

# Without byte code each process that runs tests, and each that these start, compiles all that it imports anew.
unexport PYTHONDONTWRITEBYTECODE

# Tools' caches and byte code land beside the code; what a user made (runs/, .venv) is not ours to clean.
LITTER := build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis

.PHONY: help demo test test-long lint types clean
.DEFAULT_GOAL := help

help: ## Show this list
	@echo "pyro-ltm: latent-thought language models as a Pyro program"
	@sed -n 's/^\([a-z-]*\):.*## /\1	/p' Makefile | while IFS='	' read -r target text; do printf '  make %-10s %s\n' "$$target" "$$text"; done

demo: $(STAMP) ## Train a tiny model on a CPU, fit thoughts, write text (into runs/demo)
	@$(BIN)/python -W error examples/demo.py

test: lint ## Lint, and the quick tests, of which one checks types
	@$(PYTEST) --dist loadgroup

test-long: $(STAMP) ## The tests that take minutes
	@$(PYTEST) --dist loadgroup -m long --timeout 3600

lint: $(STAMP) ## Check style and format (fix with: .venv/bin/ruff check --fix . && .venv/bin/ruff format .)
	@$(BIN)/python -m ruff check .
	@$(BIN)/python -m ruff format --check .

types: $(STAMP) ## Check types
	@$(BIN)/python -m mypy

clean: ## Remove caches and build leftovers; .venv and runs/ stay
	@rm -rf $(LITTER)
	@find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune -exec rm -rf {} +

# -qq: errors alone; pip's warnings are about its own configuration. Byte code is made on all cores, where pip takes one;
# what cannot be compiled, such as a package's templates, is passed by.
$(STAMP): pyproject.toml constraints.txt
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || { \
	    $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null || { \
	        echo "pyro-ltm needs Python 3.10 or newer; '$(PYTHON)' is $$($(PYTHON) --version 2>&1). Try: make PYTHON=python3.12"; \
	        exit 1; }; \
	    $(PYTHON) -m venv --clear $(VENV); }
	@echo "Installing into $(VENV): a few minutes the first time, most of them for torch"
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --no-compile $(PIP_FLAGS) -c constraints.txt -e '.[dev]'
	@$(BIN)/python -W ignore -m compileall -qq -j 0 $(VENV)/lib || true
	@touch $@
