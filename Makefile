# Two commands on a fresh machine: `make demo` runs the whole loop, `make test` passes the tests.
# Each makes its own environment with the exact versions in .ci/constraints*.txt.

PYTHON ?= $(shell .ci/python)
PYTHON311 ?= $(shell command -v python3.11)
VENV := .venv
RUN := $(VENV)/bin
PYTEST_WORKERS ?= 2
INSTALL = -m pip install --quiet --disable-pip-version-check
export PYTHONDONTWRITEBYTECODE :=

.PHONY: help demo test check venv test-torch bench-transfer system clean

help: ## show the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-14s %s\n", $$1, $$2}'

demo: $(VENV)/.ready-demo ## run the whole loop on this machine: convert, sign, ship, serve, learn, ship again
	@.ci/system mosquitto --optional
	$(RUN)/edgert demo $(DEMO_FLAGS)

test: venv .venv-tflite/.ready ## run the tests (real broker, real processes)
	@.ci/system mosquitto
	EDGERT_TFLITE_PYTHON=$(if $(wildcard .venv-tflite/bin/python),$(CURDIR)/.venv-tflite/bin/python) \
	    $(RUN)/python -m pytest -n $(PYTEST_WORKERS) --dist loadgroup $(PYTEST_FLAGS)

check: venv ## lint, types, floors and doors
	$(RUN)/ruff check .
	$(RUN)/ruff format --check .
	$(RUN)/mypy
	$(RUN)/lint-imports

venv: $(VENV)/.ready-dev ## make .venv with everything for development

test-torch: .venv-torch/.ready ## compare with PyTorch, in an environment of its own
	.venv-torch/bin/python -m pytest tests/torch $(PYTEST_FLAGS)

bench-transfer: venv ## time of a pull through Mosquitto against a plain HTTP download
	@.ci/system mosquitto
	$(RUN)/python -m tests.bench.bench_transfer

system: ## install the system packages that the tests use
	@.ci/system mosquitto

clean: ## remove every environment and cache
	rm -rf .venv .venv-tflite .venv-torch .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.ready-demo: $(VENV)/bin/python pyproject.toml .ci/constraints.txt
	@echo "installing into $(VENV), about a minute ..." >&2
	$(RUN)/python $(INSTALL) -c .ci/constraints.txt hatchling editables
	$(RUN)/python $(INSTALL) -c .ci/constraints.txt --no-build-isolation -e ".[demo]"
	@touch $@

$(VENV)/.ready-dev: $(VENV)/.ready-demo
	@echo "installing the tools of development into $(VENV) ..." >&2
	$(RUN)/python $(INSTALL) -c .ci/constraints.txt --no-build-isolation -e ".[dev]"
	@touch $@

# tflite-runtime has wheels up to Python 3.11 only and needs numpy 1: without that Python the tests that use it skip.
.venv-tflite/.ready: pyproject.toml .ci/constraints-tflite.txt
	@mkdir -p .venv-tflite
	@if [ -n "$(PYTHON311)" ]; then \
	    $(PYTHON311) -m venv .venv-tflite && \
	    .venv-tflite/bin/python $(INSTALL) -c .ci/constraints-tflite.txt hatchling editables && \
	    .venv-tflite/bin/python $(INSTALL) -c .ci/constraints-tflite.txt --no-build-isolation -e ".[tflite]"; \
	else echo "no python3.11 here: the tests of tflite-runtime will skip" >&2; fi
	@touch $@

# torch comes first and alone: the exact version keeps the resolver from fetching gigabytes of accelerator libraries.
.venv-torch/.ready: pyproject.toml .ci/constraints.txt .ci/constraints-torch.txt
	$(PYTHON) -m venv .venv-torch
	.venv-torch/bin/python $(INSTALL) -c .ci/constraints-torch.txt torch==2.13.0
	.venv-torch/bin/python $(INSTALL) -c .ci/constraints.txt hatchling editables
	.venv-torch/bin/python $(INSTALL) -c .ci/constraints.txt --no-build-isolation -e ".[convert]" pytest pytest-timeout scikit-learn
	@touch $@
