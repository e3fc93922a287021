# Both `make demo` and `make test` make their own virtual environment first; nothing else has to be installed.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin

.PHONY: demo test test-containers lint format clean

demo: $(VENV)/installed
	$(BIN)/autopet demo --out demo

test: $(VENV)/installed
	$(BIN)/python -m pytest -m "not docker" -n auto --maxprocesses 4 --dist loadfile

test-containers: $(VENV)/installed
	$(BIN)/python -m pytest -m docker --durations=10

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/installed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) .wheelhouse demo
