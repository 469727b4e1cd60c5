# Every target makes the virtual environment .venv in this checkout when it is not there.
PYTHON ?= python3
BIN := .venv/bin
ARGS ?=
.DEFAULT_GOAL := help
.PHONY: help dev demo test check fix bench docs lock clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## /{printf "  make %-7s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.venv/bin/uv:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "waybill needs Python 3.11 or newer as $(PYTHON)"; exit 2; }
	@$(PYTHON) -m venv .venv || { echo "install venv first, on Debian: apt install python3-venv"; rm -rf .venv; exit 2; }
	@command -v git >/dev/null || { echo "install git first, on Debian: apt install git"; exit 2; }
	@$(BIN)/python -m pip install -q --disable-pip-version-check --require-hashes -r requirements/uv.txt || { echo "pip could not fetch uv: is the package index reachable?"; exit 2; }

.venv/run.stamp: requirements/run.txt pyproject.toml | .venv/bin/uv
	@echo "preparing .venv"
	@VIRTUAL_ENV=.venv $(BIN)/uv pip install -q --require-hashes -r requirements/run.txt
	@VIRTUAL_ENV=.venv $(BIN)/uv pip install -q --no-deps --no-build-isolation -e .
	@touch $@

.venv/dev.stamp: requirements/dev.txt .venv/run.stamp
	@VIRTUAL_ENV=.venv $(BIN)/uv pip install -q --require-hashes -r requirements/dev.txt
	@touch $@

dev: .venv/dev.stamp ## everything for working on waybill, in .venv

demo: .venv/run.stamp ## the whole story on this machine, in under a minute (ARGS=--once ends by itself)
	@$(BIN)/python -m demo $(ARGS)

test: .venv/dev.stamp ## everything that this machine can run
	@$(BIN)/python -m pytest -n auto --dist loadgroup $(ARGS)

check: .venv/dev.stamp ## format, lint, types, layers
	@$(BIN)/ruff format --check -q .
	@$(BIN)/ruff check -q .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-cache

fix: .venv/dev.stamp ## format and repair what can be repaired
	@$(BIN)/ruff check -q --fix . ; $(BIN)/ruff format -q .

bench: .venv/dev.stamp ## the figures of bench/README.md, with the peers beside them
	@$(BIN)/python -m bench $(ARGS)

docs: .venv/dev.stamp ## write the reference pages that are made from the code
	@$(BIN)/python -m docs $(ARGS)

lock: .venv/bin/uv ## pin the newest versions that pyproject.toml allows
	@for set in run:"--extra server --group build" dev:"--extra server --group build --group dev" host:""; do \
	  $(BIN)/uv pip compile -q --upgrade --generate-hashes --no-emit-index-url --no-header --no-annotate --universal \
	    --python-version 3.11 $${set#*:} pyproject.toml -o requirements/$${set%%:*}.txt || exit 1; done

clean: ## remove .venv and caches
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis
