# make reproduce           the whole paper at the smoke scale (minutes on two cores)
# make reproduce SCALE=mini
# make publish SCALE=mini  its small results to published/mini, for Git
# make test                what needs no whole workflow, cluster or slice (minutes)
# make test-all            all tests
# make bench               how fast steps, whole jobs and the input are (10 minutes)
# make mutations           does `make test` notice lines broken on purpose? (half an hour)
# make chaos FAULTS=30     a run on slices through as many faults (half an hour; needs no cloud)
# make tpu-check           do the paper's models fit its TPU slice? Needs no TPU (minutes)
# make tpu-check TOPOLOGY=v5e:4x8
# make tpu-infer           what the paper's memory and clock say of its d_model (minutes)
# make docs                the documentation, to site/ (needs no network)
# make docs-serve          the same at http://localhost:8000, made again at each change
# make setup               only the environment
PYTHON ?= python3
SCALE ?= smoke
CORES ?= 2
TOPOLOGY ?= v2:4x4
FAULTS ?= 30
SEED ?= 0
VENV := .venv
BIN := $(VENV)/bin

LIBTPU := $(VENV)/libtpu

.PHONY: setup reproduce publish test test-all chaos bench mutations tpu-check tpu-infer docs docs-serve lint lock help
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
	@$(BIN)/relu-sparsity plan --scale $(SCALE) --summary
	@echo
	$(BIN)/snakemake --cores $(CORES) --logger relu-sparsity --config scale=$(SCALE)
	@echo
	@echo "Report:  results/$(SCALE)/report.html   (open it in a browser)"
	@echo "Claims:  results/$(SCALE)/claims.md"
	@echo "Tables:  results/$(SCALE)/tables/"
	@echo "Figures: results/$(SCALE)/figures/"

publish: setup
	$(BIN)/relu-sparsity publish --scale $(SCALE)

test: setup
	$(BIN)/pytest --numprocesses $(CORES) --dist worksteal -m 'not whole'

# One more than there are cores: whoever waits for a slice or a cluster leaves its core to another.
test-all: setup
	$(BIN)/pytest --numprocesses $$(($(CORES) + 1)) --dist worksteal

chaos: setup
	CHAOS_FAULTS=$(FAULTS) CHAOS_SEED=$(SEED) CHAOS_ACCELERATOR_TYPE=v2-32 \
		$(BIN)/pytest -s tests/workflow/test_chaos.py

bench: setup
	$(BIN)/python bench/bench.py
	$(BIN)/python bench/jobs.py
	$(BIN)/python bench/input.py
	$(BIN)/python bench/bench.py --growth > /dev/null
	@echo
	@echo "Table:   results/bench/bench.md"
	@echo "Jobs:    results/bench/jobs.md"
	@echo "Input:   results/bench/input.md"
	@echo "Growth:  results/bench/growth.svg"

mutations: setup
	$(BIN)/python bench/mutations.py

# In a folder of its own: JAX finds it there when asked to, and starts faster without it.
$(LIBTPU)/.complete: requirements-libtpu.txt $(VENV)/.complete
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --require-hashes --upgrade \
		--target $(LIBTPU) -r requirements-libtpu.txt
	@touch $@

tpu-infer: $(LIBTPU)/.complete
	PYTHONPATH=$(LIBTPU) $(BIN)/relu-sparsity tpu infer

tpu-check: $(LIBTPU)/.complete
	PYTHONPATH=$(LIBTPU) $(BIN)/relu-sparsity tpu check --scale tpu --topology $(TOPOLOGY)

# Material tells every time that MkDocs 2 is to come.
docs: setup
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

docs-serve: setup
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs serve --watch src --watch published

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/snakefmt --check Snakefile workflow

# The lock holds for every platform; those of a slice's hosts and of libtpu have the same versions.
# None names a package index.
lock:
	uv pip compile --universal --generate-hashes --no-header --python-version 3.11 --extra dev \
		pyproject.toml -o requirements.txt
	grep -E '^[a-z0-9-]+==' requirements.txt | sed 's/ *.$$//' > requirements-pins.tmp
	uv pip compile --generate-hashes --no-header --python-version 3.11 --extra tpu \
		--python-platform x86_64-manylinux_2_31 --constraint requirements-pins.tmp \
		--no-annotate pyproject.toml -o requirements-tpu.txt
	echo 'jax[tpu]' | uv pip compile --universal --generate-hashes --no-header --no-annotate \
		--python-version 3.11 --constraint requirements-pins.tmp - \
		| sed -n '/^libtpu==/,/[^\\]$$/p' > requirements-libtpu.txt
	rm requirements-pins.tmp
