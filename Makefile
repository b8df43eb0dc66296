# `make demo` and `make test` are all a new clone needs: Python >= 3.11 and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test lint types docs install clean

demo: install
	$(BIN)/caplet demo --out runs/demo --force

test: install lint types
	$(BIN)/python -m pytest -n auto --dist loadfile

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

clean:
	rm -rf $(VENV) runs build .pytest_cache .mypy_cache .ruff_cache
