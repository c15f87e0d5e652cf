# Everything that a fresh machine needs: Python 3.11, 3.12 or 3.13, and make. No root, no Docker, no account.
.DEFAULT_GOAL := help
SHELL := /bin/sh
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
TESTS ?= market_pipeline_tests

.PHONY: help setup demo test poison chaos bench bench-live lint format down screenshots clean

help:            ## show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/'

setup: $(STAMP)  ## make the virtual environment and install the locked packages

# uv trusts the authorities that the machine trusts, a company's too. Where it is not to be had pip does it: the lock names
# every package, and pip would not take the lock's `gql` for the `gql[requests]` that another asks for.
$(STAMP): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' || { echo "market_pipeline needs Python 3.11, 3.12 or 3.13: set PYTHON=/path/to/python3.11" >&2; exit 1; }
	@test -x $(BIN)/python && $(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv $(VENV) || $(PYTHON) -m virtualenv -q $(VENV) || { rm -rf $(VENV); echo "Python's venv module is incomplete here: on Debian, apt-get install python3-venv" >&2; exit 1; }
	@echo "installing packages ..."
	@$(BIN)/python -m pip install -q --disable-pip-version-check uv==0.13.9 2>/dev/null && $(BIN)/uv pip install -q --system-certs --python $(BIN)/python --require-hashes -r requirements.lock || $(BIN)/python -m pip install -q --disable-pip-version-check --no-deps --require-hashes -r requirements.lock
	@$(BIN)/python -m pip install -q --disable-pip-version-check --no-deps -e .
	@touch $@

demo: $(STAMP)   ## start the local stack, load 35 days of 4 symbols and two recordings, go live, show what came of it
	@$(BIN)/market-pipeline demo

test: $(STAMP)   ## run the whole test suite
	@$(BIN)/python -m pytest -n 2 --dist loadfile $(TESTS)

poison: $(STAMP) ## send 1,000 messages of poison among 100,000 good ones through the bridge
	@MARKET_PIPELINE_TEST_MESSAGES=100000 $(BIN)/python -m pytest -s -k poison market_pipeline_tests/integration/test_dead_letters.py

chaos: $(STAMP)  ## faults at random moments: SEED=7 MINUTES=10; what they cost, and whether anything is missing after repair
	@$(BIN)/python -m market_pipeline_tests.chaos $(if $(SEED),--seed $(SEED)) --minutes $(or $(MINUTES),10)

bench: $(STAMP)  ## time the road of a bar against a bare script that does the same work
	@$(BIN)/python -m market_pipeline_tests.benchmarks

bench-live: $(STAMP)  ## time the live road: ticks a second, latency, memory, processor time, and a bare script's
	@$(BIN)/python -m market_pipeline_tests.benchmarks.live --rate 20000 --seconds 120
	@$(BIN)/python -m market_pipeline_tests.benchmarks.live --rate 20000 --seconds 30 --layout bare
	@$(BIN)/python -m market_pipeline_tests.benchmarks.live --rate 5000 --seconds 60

lint: $(STAMP)   ## formatting, lint rules, types, and the walls between the rooms
	@$(BIN)/ruff format --check market_pipeline market_pipeline_tests docker
	@$(BIN)/ruff check market_pipeline market_pipeline_tests docker
	@$(BIN)/mypy
	@$(BIN)/lint-imports

format: $(STAMP) ## format the code
	@$(BIN)/ruff format market_pipeline market_pipeline_tests docker
	@$(BIN)/ruff check --fix market_pipeline market_pipeline_tests docker

screenshots: $(STAMP) ## photograph the running demo's Dagster UI with headless Chromium (docs/images)
	@$(BIN)/python -m market_pipeline_tests.browser.screenshots

down: $(STAMP)   ## stop the local stack
	@$(BIN)/market-pipeline down

# Of exactly the folder that is then removed, whatever MARKET_PIPELINE_HOME says; of .env only the lines that `up` wrote.
clean:           ## stop this folder's stack; remove its data (.market_pipeline) and the virtual environment
	@test ! -e .market_pipeline || test -x $(BIN)/market-pipeline || { echo "a stack may run in .market_pipeline, and $(BIN)/market-pipeline is not there to stop it: make setup" >&2; exit 1; }
	@test ! -e .market_pipeline || $(BIN)/market-pipeline down --home .market_pipeline --forget
	rm -rf .market_pipeline $(VENV)
