# Everything runs in .venv, which the first target sets up; the only needs are Python 3.11 or newer
# (name another one with PYTHON=…) and make.

PYTHON ?= $(shell command -v python3.11 || command -v python3 || command -v python)
VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
SETUP := pyproject.toml constraints.txt

.PHONY: demo test coverage lint format bench guard chaos chaos-cluster constraints clean

demo: $(VENV)/.base
	$(BIN)/python examples/demo.py $(ARGS)

# Tests mostly wait, for servers and processes: three at a time keep two cores busy.
PARALLEL ?= -n 3 --dist loadfile --no-loadscope-reorder

test: $(VENV)/.test
	$(BIN)/python -m pytest $(PARALLEL) $(ARGS)

coverage: $(VENV)/.test
	$(BIN)/python -m pytest --cov --cov-report=term-missing $(ARGS)

lint: $(VENV)/.lint
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/basedpyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports

format: $(VENV)/.lint
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

bench: $(VENV)/.bench
	$(BIN)/python -m askonce_loadtest bench $(ARGS)

# Ratios and counts that a change must not make worse. After the tests: it needs the machine to itself.
guard: $(VENV)/.test
	$(BIN)/python -m askonce_loadtest guard $(ARGS)

# The long one; about a minute of it is part of `make test`.
chaos: $(VENV)/.base
	$(BIN)/python -m askonce_loadtest chaos --minutes 20 $(ARGS)

chaos-cluster: $(VENV)/.base
	$(BIN)/python -m askonce_loadtest chaos --cluster --minutes 20 $(ARGS)

# Pin the newest versions that pyproject.toml allows.
constraints: $(VENV)/.lint
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip compile --quiet --all-extras --universal --upgrade --python-version 3.11 \
	    --no-header --no-annotate pyproject.toml --output-file constraints.txt

clean:
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis \
	    .import_linter_cache .coverage htmlcov

# Stamps: what is installed, so that a second run begins at once.

$(VENV)/.python:
	@test -n "$(PYTHON)" || { echo "no Python found: install 3.11 or newer" >&2; exit 2; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	    { echo "$(PYTHON) is older than 3.11: make PYTHON=/path/to/python3.11" >&2; exit 2; }
	"$(PYTHON)" -m venv $(VENV)
	@touch $@

$(VENV)/.base: $(VENV)/.python $(SETUP)
	$(INSTALL) -e '.'
	@touch $@

$(VENV)/.test: $(VENV)/.python $(SETUP)
	$(INSTALL) -e '.[test]'
	@touch $@

$(VENV)/.bench: $(VENV)/.python $(SETUP)
	$(INSTALL) -e '.[loadtest]'
	@touch $@

$(VENV)/.lint: $(VENV)/.python $(SETUP)
	$(INSTALL) -e '.[test,lint]'
	@touch $@
