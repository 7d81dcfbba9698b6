# `make help` lists the targets. `demo` and `test` do their own set-up.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
PYTHON ?= python3
# The package index to install torch from, for example one of CPU builds; pip's own index by default.
TORCH_INDEX ?=
# Further arguments for demo and test, e.g. make demo ARGS=--full
ARGS ?=

BIN := .venv/bin
STAMP := .venv/.setup-done
BENCH := .venv-bench/bin
BENCH_STAMP := .venv-bench/.setup-done
# Run these in .venv-bench, which has the frameworks to compare with, if it exists.
WITH_PEERS := benchmarks/turns.py
# Make an empty virtual environment with the first Python that is new enough.
define new_venv
python=""; \
for candidate in $(PYTHON) python3.13 python3.12 python3.11; do \
  if "$$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then python="$$candidate"; break; fi; \
done; \
if [ -z "$$python" ]; then \
  echo "Python 3.11 or newer is needed; $(PYTHON) is $$($(PYTHON) --version 2>&1 || true). Install one, or: make $(MAKECMDGOALS) PYTHON=/path/to/python3" >&2; exit 2; \
fi; \
"$$python" -m venv --clear $(1) || { echo "$$python cannot make a virtual environment (on Debian and Ubuntu: apt-get install python3-venv)" >&2; exit 2; }
endef

.PHONY: help setup demo test test-all lint bench chaos bench-setup lsa-weights tiny-models clean

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 14

setup: $(STAMP)  ## make the virtual environment .venv (TORCH_INDEX=ADDRESS: install torch from there, for CPU builds)

$(STAMP): pyproject.toml constraints.txt
	@$(BIN)/python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { rm -rf .venv; $(call new_venv,.venv); }
	@if [ -n "$(TORCH_INDEX)" ]; then $(BIN)/python -m pip install --index-url "$(TORCH_INDEX)" torch==2.13.0; fi
	$(BIN)/python -m pip install -c constraints.txt -e ".[offline,dev]"
	@touch $@

demo: setup  ## show loops and biased equilibria from real runs (ARGS=--full: more of them)
	$(BIN)/a2a-ray demo $(ARGS)

test: setup  ## run the tests without the slow ones, in two processes (ARGS="tests/test_core.py -k name": some)
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow" $(ARGS)

test-all: setup  ## run every test, one after the other
	$(BIN)/python -m pytest $(ARGS)

lint: setup  ## run ruff, ruff format and mypy --strict
	@failed=0; \
	for check in "ruff check ." "ruff format --check ." mypy; do echo "$$check"; $(BIN)/$$check || failed=1; done; \
	exit $$failed

bench: setup  ## run every benchmark; each ends with one JSON object
	@[ -e $(BENCH_STAMP) ] || echo "the frameworks to compare with are not installed: make bench-setup" >&2
	@for script in benchmarks/*.py; do \
	  python=$(BIN)/python; \
	  if [[ " $(WITH_PEERS) " == *" $$script "* && -e $(BENCH_STAMP) ]]; then python=$(BENCH)/python; fi; \
	  printf '%s ' "$$script"; "$$python" "$$script" | tail -n 1; \
	done

chaos: setup  ## kill processes and nodes of long runs (some minutes each)
	$(BIN)/python -m tests.chaos
	$(BIN)/python -m tests.chaos --driver 5
	@if command -v redis-server >/dev/null; then $(BIN)/python -m tests.chaos --redis --kills 5 --kinds gcs Worker; \
	else echo "redis-server not found: skipping the test that kills Ray's head"; fi

bench-setup: $(BENCH_STAMP)  ## install the frameworks that the benchmarks compare with, in .venv-bench

# The package is installed without its dependencies: the benchmark needs only the standard library and pydantic.
$(BENCH_STAMP): benchmarks/constraints-bench.txt pyproject.toml
	@$(call new_venv,.venv-bench)
	$(BENCH)/python -m pip install -c benchmarks/constraints-bench.txt "langgraph==1.2.*" "autogen-agentchat==0.7.5" "autogen-core==0.7.5" pydantic
	$(BENCH)/python -m pip install --no-deps -e .
	@touch $@

lsa-weights: setup  ## train the linear-self-attention layers again (a minute)
	$(BIN)/python scripts/train_lsa.py $(ARGS)

tiny-models: setup  ## train the two embedded language models again (some minutes)
	$(BIN)/python scripts/tiny_models.py $(ARGS)

clean:  ## remove virtual environments, build results and caches; runs stay
	rm -rf .venv .venv-bench dist build .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
