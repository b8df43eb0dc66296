# `make demo` and `make test` are all a new clone needs: Python >= 3.11 and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Tests start many processes: with bytecode kept, each starts sooner.
# COVERAGE=1 also measures which lines of src/caplet the tests run, and fails below the floor in .ci/coverage.py.
PYTEST := PYTHONDONTWRITEBYTECODE= $(BIN)/python $(if $(COVERAGE),-m slipcover) -m pytest -n auto --dist loadfile --no-loadscope-reorder --durations=20

.PHONY: demo test quick lint types docs install release clean

demo: install
	$(BIN)/caplet demo --out runs/demo --force

test: install lint types
	mkdir -p build
	$(PYTEST)
	$(if $(COVERAGE),$(BIN)/python .ci/coverage.py build/coverage.json)

quick: install lint types
	$(PYTEST) -m "not slow"

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: install
	$(BIN)/mypy

docs: install
	$(BIN)/python -m pdoc --docformat google --output-directory build/api \
		caplet.api caplet.errors caplet.metrics caplet.data caplet.fixed caplet.program

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet torch torchvision --constraint constraints.txt
	$(BIN)/python -m pip install --quiet --editable ".[dev]" --constraint constraints.txt
	touch $(STAMP)

release: test
	$(BIN)/python -m pip install --quiet --editable ".[dev,release]" --constraint constraints.txt
	rm -rf dist
	$(BIN)/python -m build --outdir dist
	$(BIN)/python -m twine check --strict dist/*
	$(BIN)/python .ci/wheel.py

clean:
	rm -rf $(VENV) runs build dist .pytest_cache .mypy_cache .ruff_cache
