# make demo | test | test-slow | test-lowest | check | fix | bench | docs | site | clean: each makes the virtual environment first, if it is not there.
PYTHON ?= python3
VENV ?= .venv
LOWEST ?= .venv-lowest
BIN := $(VENV)/bin
PARALLEL := -n logical --maxprocesses 4 --dist loadfile --durations 15

# The tests start hundreds of processes: none compiles again what another has.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: demo test test-slow test-lowest check fix bench docs site clean

demo: $(VENV)/ready
	$(BIN)/indistill demo --out demo-out --overwrite

test: $(VENV)/ready
	$(BIN)/python -m pytest $(PARALLEL) -m "not slow"

test-slow: $(VENV)/ready
	$(BIN)/python -m pytest $(PARALLEL) -m slow

test-lowest: $(LOWEST)/ready
	$(LOWEST)/bin/python -m pytest $(PARALLEL) -m "not slow"

check: $(VENV)/ready
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

fix: $(VENV)/ready
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/ready
	$(BIN)/python -m benchmarks.training_step --json benchmarks/training_step.json
	$(BIN)/python -m benchmarks.exact_map --json benchmarks/exact_map.json
	$(BIN)/python -m benchmarks.cold_search --json benchmarks/cold_search.json

docs: $(VENV)/ready
	$(BIN)/python docs/generate_cli.py docs/cli.md
	$(BIN)/python docs/generate_bench_schema.py docs/bench.schema.json

site: $(VENV)/ready
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

clean:
	rm -rf $(VENV) $(LOWEST) demo-out build dist site

$(VENV)/ready: pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(f"Python 3.11 or later is needed, {v[0]}.{v[1]} found; set PYTHON=python3.12, say" if v < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade pip
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile --editable ".[dev]"
	$(BIN)/python -m compileall -qq -j 0 $(VENV)/lib || true  # on all cores, as pip cannot; templates in packages fail
	touch $@

# The lowest versions that pyproject.toml allows of what it names, and of what these need the newest.
$(LOWEST)/ready: pyproject.toml
	$(PYTHON) -m venv $(LOWEST)
	$(LOWEST)/bin/python -m pip install --quiet --disable-pip-version-check uv
	$(LOWEST)/bin/uv pip install --quiet --python $(LOWEST)/bin/python --resolution lowest-direct --editable ".[dev]"
	touch $@
