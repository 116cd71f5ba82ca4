# `make demo` and `make test` set everything up on a machine that has Python, make and a compiler.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo zoo zoo-fast test test-ray lint types docs check bench wheel clean

demo: $(VENV)/ready
	$(BIN)/python scripts/demo.py

zoo: $(VENV)/ready
	$(BIN)/python scripts/zoo.py

zoo-fast: $(VENV)/ready
	$(BIN)/python scripts/zoo.py --fast

# one file's tests stay together: they share what is slow to make
test: $(VENV)/ready
	$(BIN)/python -m pytest -n 3 --dist loadfile

# half a gigabyte that the other tests do without
test-ray: $(VENV)/ready
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[ray]'
	$(BIN)/python -m pytest -W ignore tests/batch/test_cluster.py tests/serve/test_on_ray.py

lint: $(VENV)/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/ready
	$(BIN)/mypy

# the theme announces its successor at every build; that is no warning about these pages
docs: $(VENV)/ready
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

check: lint types docs test

wheel: $(VENV)/ready
	$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir dist .

clean:
	rm -rf $(VENV) dist demo site .mypy_cache .pytest_cache .ruff_cache

$(VENV)/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@
