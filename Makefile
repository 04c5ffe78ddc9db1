# `make help` lists the targets.
PYTHON ?= python3
BIN := .venv/bin
SLOW := not slow
CODE := core data domains pleiad tests benchmarks

.PHONY: help install run test test-slow lint types bench fuzz docs

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

.venv/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed: make PYTHON=python3.11 $(MAKECMDGOALS)"; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "Installing about 3 GB of packages into .venv; this takes a few minutes."
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[all,dev]'
	@touch $@

install: .venv/installed  ## make .venv with every extra

run: install  ## train a forecaster on a real series and compare it with baselines
	$(BIN)/pleiad fit time_series/patchtst_co2

test: install lint types  ## lint, types, and the tests that take seconds
	$(BIN)/python -m pytest -m "$(SLOW)" -q

test-slow:  ## everything `test` does, and the slow tests
	$(MAKE) test SLOW="slow or not slow"

lint: install  ## ruff, import rules, spelling
	$(BIN)/ruff check $(CODE)
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/lint-imports --no-logo
	$(BIN)/codespell $(CODE) docs configs *.md

types: install  ## mypy, strict
	$(BIN)/mypy

bench: install  ## speed and memory beside a bare loop, other formulations and libraries, as ratios
	$(BIN)/python benchmarks/step_overhead.py
	$(BIN)/python benchmarks/time_series.py
	$(BIN)/python benchmarks/time_series_peers.py
	$(BIN)/python benchmarks/own_series.py
	$(BIN)/python benchmarks/nlp.py
	$(BIN)/python benchmarks/vision.py
	$(BIN)/python benchmarks/medical.py
	$(BIN)/python benchmarks/callbacks.py
	$(BIN)/python benchmarks/freezing.py
	$(BIN)/python benchmarks/compression.py
	$(BIN)/python benchmarks/digits.py

fuzz: install  ## damaged files against every reader
	$(BIN)/python -m pytest -m "slow or not slow" -q tests/core/test_openers.py tests/core/test_checkpoint_io.py tests/core/test_tensor_files.py

docs: install  ## regenerate the pages and the static index from the code
	$(BIN)/python -m pleiad.index
	$(BIN)/python -m pleiad.listing
