# Everything starts here: `make demo` or `make test` on a fresh clone sets itself up, once.

PYTHON  ?= python3
WORKERS ?= 2
ARGS    ?=

VENV    := .venv
BIN     := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install -q -c constraints.txt
STUDIES := $(VENV)/.studies-installed
DEV     := $(VENV)/.dev-installed
OLDEST  := .venv-oldest
MUTANTS := .venv-mutants

DEMO := compare --data digits --noise 0.6 \
	--methods sgd,sam,friendly-sam,agnostic-sam,agnostic-sam-previous,ae-agnostic-sam-previous \
	--tune rho --seeds 5 --out runs/demo

export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PYRIGHT_PYTHON_IGNORE_WARNINGS := 1

# Real images beyond the digits, where they are at hand; tests that need them skip otherwise.
FLATMIN_DATA ?= ../shared/data
ifneq ($(wildcard $(FLATMIN_DATA)),)
export FLATMIN_DATA := $(abspath $(FLATMIN_DATA))
endif

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup demo test coverage mutants test-oldest lint format docs bench release clean

help: ## say what there is
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo "  options: PYTHON=python3.12 WORKERS=4 ARGS='-k friendly' FLATMIN_DATA=folder"

setup: $(DEV) ## install flatmin and the tools to work on it into .venv

demo: $(STUDIES) ## compare six methods on noisy digits; writes runs/demo/report.html
	$(BIN)/flatmin $(DEMO) $(ARGS)

test: $(DEV) ## run the tests
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal $(ARGS)

coverage: $(DEV) ## run the tests and say which lines and branches of the code they do not reach
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal --cov --cov-report=term $(ARGS)

mutants: $(DEV) $(MUTANTS)/.installed ## change a room of the code here and there: which changes does no test notice?
	$(MUTANTS)/bin/python .ci/mutants.py $(or $(ARGS),parts)

# What trainers and older releases of torch do differently; not what tests of training repeat.
OLDEST_TESTS := tests/integrations tests/engine/test_compiled.py tests/engine/test_state_of_the_model.py

test-oldest: $(OLDEST)/.installed ## run the tests of trainers with the oldest releases that we allow
	$(OLDEST)/bin/python -m pytest -n $(WORKERS) --dist worksteal $(OLDEST_TESTS) $(ARGS)

lint: $(DEV) ## check style, format and types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright

format: $(DEV) ## rewrite the files as lint wants them
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

docs: $(DEV) ## build the documentation into site/
	$(BIN)/mkdocs build --strict $(ARGS)

bench: $(DEV) ## measure what a step costs beyond its gradients
	$(BIN)/python benchmarks/overhead.py $(ARGS)

release: $(DEV) ## build wheel and sdist, install them elsewhere, and try what was installed
	$(BIN)/python .ci/release.py --keep dist $(ARGS)

clean: ## remove the environment, caches and built files; runs/ stays
	rm -rf $(VENV) $(OLDEST) $(MUTANTS) .pytest_cache .ruff_cache .hypothesis .coverage .coverage.* htmlcov build dist site
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	@command -v $(PYTHON) >/dev/null || \
		{ echo "$(PYTHON) was not found: install Python 3.10 or newer, or name yours: make PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -c 'import sys; v = sys.version_info; v >= (3, 10) or sys.exit("flatmin needs Python 3.10 or newer, but $(PYTHON) is %d.%d: name another one: make PYTHON=python3.12" % v[:2])'
	$(PYTHON) -m venv $(VENV)

# torch comes first and alone: the download is large, and no other package may choose its build.
$(STUDIES): pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing torch and what the studies need; a minute or so, once."
	$(INSTALL) torch
	$(INSTALL) -e '.[studies]'
	@touch $@

$(DEV): pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing torch and what the tests need; two minutes or so, once."
	$(INSTALL) torch
	$(INSTALL) -e '.[studies,dev]'
	@touch $(STUDIES) $@

# No torch without CUDA is this old in the index: 3 GB to download.
$(OLDEST)/.installed: pyproject.toml constraints-oldest.txt | $(BIN)/python
	@echo "Installing the oldest releases; two minutes or so, once."
	$(BIN)/python -m venv $(OLDEST)
	$(OLDEST)/bin/python -m pip install -q -c constraints-oldest.txt -e . \
		accelerate lightning transformers torchmetrics \
		hypothesis numpy pytest pytest-xdist scikit-learn
	@touch $@

# It has needs of its own, of which flatmin knows nothing.
$(MUTANTS)/.installed: | $(BIN)/python
	$(BIN)/python -m venv $(MUTANTS)
	$(MUTANTS)/bin/python -m pip install -q cosmic-ray==8.7.0
	@touch $@
