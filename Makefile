# `make demo` runs the main job, `make test` runs every check. Both make .venv first, if need be.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
INSTALLED = $(VENV)/.installed
SLOW = slow or e2e or packaging or browser or ddp or gpu

# Several test processes of one thread each where pytest-xdist is installed, at most four because nnU-Net needs memory;
# `make test WORKERS=` runs all tests in one process.
WORKERS = $$($(BIN)/python -c "import xdist; print('--numprocesses=logical --maxprocesses=4 --dist=worksteal')" 2>/dev/null)
PYTEST = OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE $(BIN)/pytest $(WORKERS)

.PHONY: help demo install test test-fast lint docs doctor clean-venv
.DEFAULT_GOAL = help

help:  ## list the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

demo: install  ## make a dataset, train, predict, and write a report to demo-output/
	$(BIN)/nnunet-imbal demo

install: $(INSTALLED)  ## make the environment and install the project into it

# pyproject.toml and the start-up files are copied at installation; everything else is used from this folder.
$(INSTALLED): pyproject.toml $(wildcard startup/*)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python >= 3.10 is needed: make PYTHON=python3.11 ...")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet uv || echo "uv is not available: pip does the work, which takes longer"
	$(BIN)/uv pip install --python $(BIN)/python --editable . --group dev \
	  || { $(BIN)/python -m pip install --quiet "pip>=25.1" && $(BIN)/python -m pip install --editable . --group dev; }
	$(BIN)/python -c "import torchvision" || { echo "torch and torchvision do not match: see docs/troubleshooting.md"; exit 1; }
	touch $@

test: lint test-fast  ## every check: style, types, fast tests, slow tests
	$(PYTEST) -m "$(SLOW)" --durations=20

test-fast: install  ## the tests that take seconds
	$(PYTEST) -m "not ($(SLOW))"

lint: install  ## style and types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/mypy startup/_nnunet_imbal_start.py

docs: install  ## the website, in site/docs/index.html
	$(BIN)/sphinx-build -c docs -W --keep-going -q -b html . site

doctor: install  ## what could go wrong on this machine
	$(BIN)/nnunet-imbal doctor

clean-venv:  ## remove the environment
	rm -rf $(VENV)
