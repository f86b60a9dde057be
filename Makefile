# Needs only Python >= 3.11 and make: `make demo` sets up the rest in .venv.

PYTHON ?= $(firstword $(foreach name,python3 python3.11 python3.12 python3.13 python,$(shell \
	$(name) -c 'import sys; sys.version_info >= (3, 11) and print("$(name)")' 2>/dev/null)))
BIN := .venv/bin
STAMP := .venv/.installed
# Tests are small: one thread each, two workers.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

# The oldest transformers that pyproject.toml allows, in front of the newest, which all else is tested with.
OLDEST := .venv/oldest

.PHONY: help demo bench test lint types test-fast test-slow test-oldest clean

help:
	@echo "make demo       train a small Llama on Python's own texts and let it write (about two minutes)"
	@echo "make bench      measure speed against transformers (about a quarter of an hour)"
	@echo "make test       lint, types and fast tests"
	@echo "make test-slow  the long tests, and those against the oldest transformers"
	@echo "make clean      remove the environment, the demo and all caches"

# Reinstalls only when the requirements change. torch comes first, so that the pinned build is there
# before any other package asks for one.
$(STAMP): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "error: no Python >= 3.11 found: install one, or run make PYTHON=/path/to/python"; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[all]'
	@touch $@

demo: $(STAMP)
	@$(BIN)/anyorder demo

bench: $(STAMP)
	@$(BIN)/anyorder bench

test: lint types test-fast

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)
	$(BIN)/mypy

test-fast: $(STAMP)
	$(PYTEST)

$(OLDEST)/.installed: $(STAMP)
	rm -rf $(OLDEST)
	$(BIN)/python -m pip install --quiet --target $(OLDEST) \
		"transformers==$$(sed -n 's/.*"transformers>=\([0-9.]*\),.*/\1/p' pyproject.toml).*"
	@touch $@

test-oldest: $(OLDEST)/.installed
	@PYTHONPATH=$(CURDIR)/$(OLDEST) $(BIN)/python -c "import transformers; print('transformers', transformers.__version__)"
	PYTHONPATH=$(CURDIR)/$(OLDEST) $(PYTEST) tests/huggingface tests/parity tests/training

# pytest's code 5 says that no test was selected: not a failure.
test-slow: $(STAMP) test-oldest
	$(PYTEST) -m "slow and not gpu" || test $$? -eq 5

clean:
	rm -rf .venv demo build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +
