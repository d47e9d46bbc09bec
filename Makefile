# make reproduce           the whole paper at the smoke scale (minutes on two cores)
# make reproduce SCALE=mini
# make test                the tests
# make bench               the training step against its own matrix products (minutes)
# make setup               only the environment
PYTHON ?= python3
SCALE ?= smoke
CORES ?= 2
VENV := .venv
BIN := $(VENV)/bin

.PHONY: setup reproduce test bench lint lock help
.DEFAULT_GOAL := help

help:
	@sed -n 's/^# make/  make/p' Makefile

setup: $(VENV)/.complete

$(VENV)/.complete: requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "error: PYTHON=$(PYTHON) is older than 3.11; try: make setup PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r requirements.txt
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

reproduce: setup
	$(BIN)/snakemake --cores $(CORES) --quiet reason --config scale=$(SCALE)
	@echo
	@echo "Report:  results/$(SCALE)/report.html   (open it in a browser)"
	@echo "Claims:  results/$(SCALE)/claims.md"
	@echo "Tables:  results/$(SCALE)/tables/"
	@echo "Figures: results/$(SCALE)/figures/"

test: setup
	$(BIN)/pytest

bench: setup
	$(BIN)/python bench/bench.py
	$(BIN)/python bench/bench.py --growth > /dev/null
	@echo
	@echo "Table:   results/bench/bench.md"
	@echo "Growth:  results/bench/growth.svg"

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/snakefmt --check Snakefile workflow

# The lock holds for every platform and names no package index.
lock:
	uv pip compile --universal --generate-hashes --no-header --python-version 3.11 --extra dev \
		pyproject.toml -o requirements.txt
