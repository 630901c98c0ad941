# Everything runs in .venv, which the first target makes with Python 3.11 and pip alone.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
STAMP := .venv/.installed
ARGS ?=

.PHONY: help demo check test assets gpu soak bench format clean

help:
	@echo "make demo    the story, from compiling a model to a device that comes back by itself"
	@echo "make check   format, lint, types, import contracts, fast tests (all day, < 3 min)"
	@echo "make test    check, every test, the built wheel in bare environments (what CI runs)"
	@echo "make gpu     the TensorRT variants on this machine's GPU; skips, and says why, where there is none"
	@echo "make bench   measurements, each with a table and JSON under build/bench"
	@echo "make format  write the code the way check wants it"

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] < (3, 11))' || \
		{ echo "Skerry's build needs Python 3.11 or newer; this is $$($(PYTHON) --version). Set PYTHON=…"; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

demo: $(STAMP)
	@$(BIN)/python -m demo.story $(ARGS)

check: $(STAMP)
	$(BIN)/ruff format --check -q .
	$(BIN)/ruff check -q .
	$(BIN)/mypy
	$(BIN)/mypy --python-version 3.10 -p skerry -p edge_agent
	$(BIN)/mypy --python-version 3.13 -p skerry -p edge_agent
	$(BIN)/lint-imports --no-logo
	$(BIN)/pytest -q -n 2 -m "not slow"

test: check assets
	# A file stays with one worker, which makes its hub or model once. Three on two cores: tests of the network mostly wait.
	@$(BIN)/pytest -q -n 3 --dist loadfile -m slow

gpu: $(STAMP)
	$(BIN)/pytest -rs -s tests/gpu

assets: $(STAMP)
	@$(BIN)/python scripts/fetch_assets.py $@

soak bench: $(STAMP)
	$(BIN)/python -m benchmarks.$@ $(ARGS)

format: $(STAMP)
	$(BIN)/ruff format -q .
	$(BIN)/ruff check -q --fix .

clean:
	rm -rf .venv build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache
