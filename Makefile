# The commands of docs/developing.md. On a fresh machine each one works as the only command typed.
.DEFAULT_GOAL := help
SHELL := /bin/sh
VENV ?= .venv
BIN := $(VENV)/bin
ARGS ?=
JOBS ?= auto
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_CONSTRAINT := $(CURDIR)/constraints.txt

help:
	@echo "make run      the whole service on loopback, with a sink in place of the Internet"
	@echo "make test     all tests, with the real peers they need"
	@echo "make check    formatting, lint, types"
	@echo "make crash    the long crash tests"
	@echo "make bench    PTT beside Postfix + OpenDKIM: a table, and a plot in run/bench.svg"
	@echo "make clean    remove what the commands above made"

# A name on the path may be a shim that runs nothing, so a candidate counts only if it runs. The system's own comes first:
# distributions build it with profile-guided optimisation, version managers do not (13 % of a worker's CPU).
$(VENV)/bin/python:
	@set -e; found=; \
	for p in $(PYTHON) /usr/bin/python3 python3 python3.13 python3.12 python3.11 python3.14; do \
	  if "$$p" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then found=$$p; break; fi; \
	done; \
	if [ -z "$$found" ]; then \
	  echo "PTT needs Python 3.11 or newer with its venv module (Debian: apt-get install python3 python3-venv);" \
	       "make PYTHON=/path/to/python3 names one." >&2; exit 1; fi; \
	echo "environment: $$("$$found" -V) in $(VENV)"; "$$found" -m venv $(VENV)

$(VENV)/.run: $(VENV)/bin/python pyproject.toml constraints.txt
	@echo "installing the service"; $(BIN)/python -m pip install -qq -e . && touch $@

$(VENV)/.dev: $(VENV)/bin/python pyproject.toml constraints.txt
	@echo "installing the service and the development tools"; \
	$(BIN)/python -m pip install -qq -e '.[dev]' && touch $@ $(VENV)/.run

run: $(VENV)/.run
	@exec $(BIN)/python -m ptt.cli.tryout $(ARGS)

test: $(VENV)/.dev
	@sh tests/install-peers.sh
	@$(BIN)/python -m pytest -n $(JOBS) --maxprocesses 4 --dist loadfile $(ARGS)

check: $(VENV)/.dev
	@$(BIN)/ruff format --check ptt queue tests loadtests
	@$(BIN)/ruff check ptt queue tests loadtests
	@$(BIN)/mypy

crash: $(VENV)/.dev
	@sh tests/install-peers.sh
	@$(BIN)/python tests/crash/long.py $(ARGS)

bench: $(VENV)/.dev
	@$(BIN)/python loadtests/bench.py --plot run/bench.svg $(ARGS)

clean:
	rm -rf $(VENV) run build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis

.PHONY: help run test check crash bench clean
