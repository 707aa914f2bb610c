# Everything runs in .venv, which is made when it is missing and left alone when it is up to date.
VENV := .venv
PY := $(VENV)/bin/python
STAMP := $(VENV)/.installed

.PHONY: demo test test-fast test-lowest test-matrix lint types docs wheel format clean

demo: $(STAMP)
	$(VENV)/bin/cellfeed demo

test: $(STAMP)
	$(PY) -m pytest -q --numprocesses logical --maxprocesses 4 --dist worksteal

# Without the tests that start processes or servers, or train models.
test-fast: $(STAMP)
	$(PY) -m pytest -q -m "not slow" --numprocesses logical --maxprocesses 4 --dist worksteal

# On the lowest versions that pyproject.toml permits, without the libraries around cellfeed.
test-lowest: $(STAMP)
	$(VENV)/bin/nox --session lowest

# On each supported version of Python that is installed, with the newest and the lowest libraries.
test-matrix: $(STAMP)
	$(VENV)/bin/nox

# Builds the distributions, and uses the wheel outside of this folder with the libraries of .venv.
wheel: $(STAMP)
	rm -rf dist
	$(PY) -m build --quiet
	$(PY) -m twine check --strict dist/*
	folder=$$(mktemp -d) && trap 'rm -rf '$$folder EXIT && \
		$(PY) -m pip install --quiet --no-deps --target $$folder dist/*.whl && cd $$folder && \
		PYTHONPATH=$$folder $(CURDIR)/$(PY) -P $(CURDIR)/tests/programs/installed.py

lint: $(STAMP)
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/lint-imports
	$(VENV)/bin/deptry src

types: $(STAMP)
	$(VENV)/bin/mypy

docs: $(STAMP)
	$(PY) -m sphinx -W --keep-going -q -b html docs docs/_build/html

format: $(STAMP)
	$(VENV)/bin/ruff format .
	$(VENV)/bin/ruff check --fix .

$(STAMP): pyproject.toml constraints.txt requirements-dev.txt
	test -x $(PY) || python3 -m venv $(VENV)
	$(PY) -m pip install --quiet --constraint constraints.txt --editable ".[demo,plot]" --requirement requirements-dev.txt
	touch $@

clean:
	rm -rf $(VENV) .nox dist docs/_build docs/reference .pytest_cache .mypy_cache .ruff_cache .hypothesis
