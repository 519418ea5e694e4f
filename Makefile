# make demo · make test · make lint · make bench — each does its own set-up in .venv.

PYTHON ?= python3
VENV := .venv
READY := $(VENV)/.ready

# Processes that run the tests, each with a Postgres of its own; 0 runs them in one.
WORKERS ?= auto
PYTEST = $(VENV)/bin/python -m pytest --numprocesses $(WORKERS) --maxprocesses 4 --dist loadfile

.PHONY: help setup demo test test-fast lint format docs bench clean fuzz soak audit
.DEFAULT_GOAL := help

help:
	@echo "make setup   install pgdefect and everything it needs into $(VENV), pinned versions"
	@echo "make demo    set up, then learn solar cells, flag defects, find similar images"
	@echo "make test    set up, then run the tests, two to four at once (WORKERS=1)"
	@echo "make test-fast   only those that neither train, nor run servers, nor are slow"
	@echo "make lint    set up, then check style and types"
	@echo "make docs    set up, then write the generated pages of docs/ anew"
	@echo "make fuzz    set up, then try 100,000 bad inputs on what reads them"
	@echo "make soak    set up, then kill commands and servers and see that nothing is lost"
	@echo "make audit   look for known advisories on the pinned versions"
	@echo "make bench   set up, then measure against peers"
	@echo "make clean   remove $(VENV) and what tools left behind"

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "pgdefect needs Python 3.11 or newer, and $(PYTHON) is $$($(PYTHON) --version 2>&1)."; \
		echo "Name another one: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@echo "Setting up $(VENV): about 7 GB, torch most of it; a few minutes."
	@# Debian ships venv without ensurepip; pip can then serve from outside.
	@test -x $(VENV)/bin/python -a -x $(VENV)/bin/pip || $(PYTHON) -m venv $(VENV) 2>/dev/null || { \
		$(PYTHON) -m venv --without-pip $(VENV) && \
		$(PYTHON) -m pip --python $(VENV)/bin/python install --quiet pip; }
	PIP_CONSTRAINT=constraints.txt $(VENV)/bin/python -m pip install \
		--disable-pip-version-check --quiet --use-pep517 --editable '.[train,evaluate,interop,demo,dev]'
	@touch $@
	@echo "$(VENV) is ready."

demo: setup
	@$(VENV)/bin/pgdefect demo

test: setup
	$(PYTEST) --durations=20

test-fast: setup
	$(PYTEST) -m "not slow and not train and not server"

lint: setup
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

format: setup
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

docs: setup
	$(VENV)/bin/python -m docs

bench: setup
	$(VENV)/bin/python -m benchmarks

# Its own packages: nobody who uses pgdefect needs them.
audit:
	@test -x $(VENV)-audit/bin/pip-audit || { \
		$(PYTHON) -m venv --without-pip $(VENV)-audit && \
		$(PYTHON) -m pip --python $(VENV)-audit/bin/python install --quiet \
			--disable-pip-version-check pip --requirement audit/requirements.txt; } || true
	@PATH="$(CURDIR)/$(VENV)-audit/bin:$$PATH" $(PYTHON) -m audit $(AUDIT) \
		constraints.txt audit/requirements.txt

fuzz: setup
	$(VENV)/bin/python -m fuzz

soak: setup
	$(VENV)/bin/python -m soak

clean:
	rm -rf $(VENV) $(VENV)-audit .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find src tests fuzz soak audit benchmarks docs migrations -name __pycache__ -type d -prune -exec rm -rf {} +
