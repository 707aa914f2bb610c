# Everything runs in .venv, which is made when it is missing and left alone when it is up to date.
VENV := .venv
PY := $(VENV)/bin/python
STAMP := $(VENV)/.installed

LOWEST := .venv-lowest

.PHONY: demo test test-fast test-lowest lint types docs format clean

demo: $(STAMP)
	$(VENV)/bin/cellfeed demo

test: $(STAMP)
	$(PY) -m pytest -q --numprocesses logical --maxprocesses 4 --dist worksteal

# Without the tests that start processes or servers, or train models.
test-fast: $(STAMP)
	$(PY) -m pytest -q -m "not slow" --numprocesses logical --maxprocesses 4 --dist worksteal

# On the lowest versions that pyproject.toml permits, without the libraries around cellfeed. pandas and h5py warn of NumPy.
test-lowest: constraints-lowest.txt
	test -x $(LOWEST)/bin/python || python3.11 -m venv $(LOWEST)
	$(LOWEST)/bin/python -m pip install --quiet --constraint constraints-lowest.txt --editable ".[dask,demo,plot]" \
		boto3 hypothesis "moto[server]" psutil pytest pytest-timeout
	$(LOWEST)/bin/python -m pytest -q -W "ignore:np.find_common_type:DeprecationWarning" \
		-W 'ignore:`product` is deprecated:DeprecationWarning' --ignore tests/programs \
		--ignore tests/test_census.py --ignore tests/test_examples.py --ignore tests/test_pages.py

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
	rm -rf $(VENV) $(LOWEST) docs/_build .pytest_cache .mypy_cache .ruff_cache .hypothesis
