# `make` alone lists what there is. Everything runs in .venv, made on first use; `make PYTHON=python3.12 test` chooses
# the Python it is made with.

PYTHON ?= python3
WORKERS ?= 2

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check -qq
PINNED := pyproject.toml setup.cfg constraints.txt
NOTEBOOKS := $(wildcard notebooks/*.ipynb)

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test test-all bench check format clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-10s %s\n", $$1, $$2}' Makefile

demo: $(VENV)/test.stamp ## run the embedded experiment: no GPU, no network, no account
	$(BIN)/ttpa

test: $(VENV)/test.stamp ## run the tests that take seconds
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile

test-all: $(VENV)/test.stamp ## run every test, the slow ones too
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile -m ""

bench: $(VENV)/test.stamp ## measure speed against plain loops
	$(BIN)/python experiments/speed/run.py

check: $(VENV)/dev.stamp ## lint, formatting, types, spelling, notebooks; changes nothing
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/codespell
	$(if $(NOTEBOOKS),$(BIN)/nbstripout --verify $(NOTEBOOKS))

format: $(VENV)/dev.stamp ## format the code, fix what lint can fix, strip the notebooks
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .
	$(if $(NOTEBOOKS),$(BIN)/nbstripout $(NOTEBOOKS))

clean: ## remove the environment, builds and caches; never store/ and results/
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .hypothesis .mypy_cache .ruff_cache
	find . -path ./.git -prune -o -name __pycache__ -prune -exec rm -rf {} +

# torch first: its build for this machine (CPU or CUDA) may come from an index of its own; what follows then keeps it.
$(VENV)/test.stamp: $(PINNED)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "ttpa needs Python 3.11 or later; $(PYTHON) is `$(PYTHON) --version`. Choose one: make PYTHON=..." >&2; exit 1; }
	@echo "making $(VENV): a minute or two on the first run"
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) install --upgrade pip
	@$(PIP) install -c constraints.txt torch setuptools wheel
	@$(PIP) install -c constraints.txt --no-build-isolation -e '.[test]'
	@touch $@

$(VENV)/dev.stamp: $(VENV)/test.stamp
	@$(PIP) install -c constraints.txt --no-build-isolation -e '.[test,dev]'
	@touch $@
