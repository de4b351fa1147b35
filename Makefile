# Two commands matter: `make demo` shows lightrec at work on real data, `make test` checks it.
# Both make a virtual environment and install lightrec into it; nothing is imported from this checkout.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
PYTEST_ARGS ?= -n 2 --dist loadgroup
# Distributions of their own, each with its tests; lightrec works without any of them.
PLUGINS := $(patsubst %/pyproject.toml,./%,$(wildcard plugins/*/pyproject.toml triton_kernels/pyproject.toml))

.PHONY: help setup demo test docs lint clean
.DEFAULT_GOAL := help

help:  ## list the commands
	@grep -E '^[a-z]+:.*##' Makefile | sed -E 's/:.*## /	/'

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) install -q -c constraints.txt torch
	$(PIP) install -q -c constraints.txt '.[test,docs]'
	@touch $@

setup: $(VENV)/.installed  ## make the environment and install lightrec as it stands here
	@rm -rf build
	@$(PIP) install -q --no-deps --force-reinstall .
	@rm -rf build

demo: setup  ## train SASRec on MovieLens-100K, test it, and recommend films by title (under 10 minutes on 2 cores)
	@LIGHTREC=$(BIN)/lightrec sh docs/demo.sh

test: setup  ## run the tests: what depends on kernels first without any plug-in, then all of them with every one
	-@$(PIP) uninstall -q -y $(notdir $(filter ./plugins/%,$(PLUGINS))) lightrec-triton 2>/dev/null
	OMP_NUM_THREADS=1 $(BIN)/pytest $(PYTEST_ARGS) tests/ops tests/nn tests/test_extensions.py
	$(PIP) install -q -c constraints.txt $(PLUGINS)
	OMP_NUM_THREADS=1 $(BIN)/pytest $(PYTEST_ARGS) tests plugins triton_kernels

docs: setup  ## build the site into site/
	$(BIN)/python -m mkdocs build --strict

lint: setup  ## check the style
	$(PIP) install -q -c constraints.txt ruff
	$(BIN)/ruff check . && $(BIN)/ruff format --check .

clean:  ## remove the environment and builds
	rm -rf $(VENV) build site *.egg-info
