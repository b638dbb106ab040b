# The toolbox. Everything runs from .venv, which the first target that needs it creates:
#
#   make demo      train a small model on a real climate file, see examples/
#   make test      the test suite
#   make rust      the array kernels of rust/, where cargo is installed (part of every other target)
#   make lint      ruff, mypy and the import layers
#   make docs      the documentation, docs/_build/html/index.html
#   make catalog   entry points and catalog.json, derived from the families' code
#   make bench     what the project promises to reach, measured against its peers
#   make clean     caches and build outputs (.venv and trained models in runs/ stay)
#
# Another interpreter: make PYTHON=python3.13 test. Another place for the environment: make VENV=/tmp/env test.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PYTEST_ARGS ?=

# Plugins that are installed beside the core; the template shows third parties how, and is tested like one.
PLUGINS := $(patsubst %/pyproject.toml,%,$(wildcard plugins/*/pyproject.toml))

# What an editable installation reads once: metadata, versions, entry points. Code itself needs no reinstallation.
METADATA := pyproject.toml astrozoo/_version.py $(wildcard astrozoo/entry_points.txt) $(wildcard $(addsuffix /pyproject.toml,$(PLUGINS)))

# What the extension module is built from.
RUST_SOURCES := $(shell find rust -path rust/target -prune -o -path rust/fuzz -prune -o \( -name '*.rs' -o -name '*.toml' -o -name Cargo.lock \) -print)

.PHONY: help install rust demo test lint docs catalog bench clean

help:
	@sed -n 's/^#   //p' Makefile

install: $(VENV)/.installed rust
ifeq ($(origin PYTHON),command line)
	@asked=$$($(PYTHON) -c 'import platform; print(platform.python_version())'); \
	made=$$($(BIN)/python -c 'import platform; print(platform.python_version())'); \
	test "$$asked" = "$$made" || { \
		echo "$(VENV) was made with Python $$made, '$(PYTHON)' is $$asked." >&2; \
		echo "Add another place, such as VENV=.venv-$$asked, or remove $(VENV) first." >&2; exit 1; }
endif

$(VENV)/.installed: $(METADATA) | $(BIN)/python
	@echo "Installing astrozoo and its extras into $(VENV) (PyTorch is large: the first time takes a few minutes)"
	@$(BIN)/uv --version > /dev/null 2>&1 || $(BIN)/python -m pip install --quiet --upgrade uv
	$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python --editable '.[all,dev]' $(foreach plugin,$(PLUGINS),--editable $(plugin))
	@touch $@

# The array kernels in Rust. Without cargo everything works, in NumPy; nothing is noted then, so that a later cargo is seen.
rust: $(VENV)/.installed
	@if command -v cargo > /dev/null; then $(MAKE) --no-print-directory $(VENV)/.rust; \
	else echo "cargo is not installed: astrozoo.accel runs in NumPy. With Rust (https://rustup.rs), make builds its kernels."; fi

$(VENV)/.rust: $(RUST_SOURCES) | $(VENV)/.installed
	@echo "Building the array kernels in Rust (the first time takes a minute)"
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/uv pip install --quiet --no-deps --no-build-isolation --python $(BIN)/python --reinstall-package astrozoo-rust --editable rust
	@touch $@

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "astrozoo needs Python 3.11 or newer, but '$(PYTHON)' is $$($(PYTHON) --version 2>&1)." >&2; \
		echo "Name another one: make PYTHON=/path/to/python3.12 ..." >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' || { \
		echo "'$(PYTHON)' cannot make virtual environments; on Debian and Ubuntu: apt install python3-venv." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

demo: install
	$(BIN)/python examples/forecast_temperature.py

# One process: torch already uses both cores of a small machine, and workers would each import it again.
test: install
	$(BIN)/python -m pytest $(PYTEST_ARGS)

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: install
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs docs/_build/html
	@echo "docs/_build/html/index.html"

catalog: install
	$(BIN)/python -m astrozoo.catalogue
	@$(MAKE) --no-print-directory install

# All are measured before a missed target fails the whole.
bench: install
	@failed=; for name in core load trainer memory cube accel attention; do $(BIN)/astrozoo bench $$name || failed="$$failed $$name"; done; \
	if [ -n "$$failed" ]; then echo "targets missed in:$$failed" >&2; exit 1; fi

clean:
	rm -rf build dist rust/target docs/_build docs/generated .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -path ./$(VENV) -prune -o -name __pycache__ -type d -print0 | xargs -0 rm -rf
