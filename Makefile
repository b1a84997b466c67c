# `make hello` and `make test` work in a fresh clone on a machine with Python 3.11, a C++ compiler, make and git; each sets up
# what it needs, and a second time there is nothing to set up. `make` lists the rest.

PYTHON ?= python3
QUESTION ?= Why is the sky blue?
MODEL ?= smollm2
PYTEST_ARGS ?=

.DELETE_ON_ERROR:
.PHONY: help hello test lint format native sanitize unit oracle bench clean

help:
	@sed -n 's/^# make /make /p' $(firstword $(MAKEFILE_LIST))

# What a wheel is made of: a change to any of it makes `make hello` install again.
PACKAGE := pyproject.toml CMakeLists.txt constraints/test.txt README.md \
  $(shell find herder native -type f -not -path '*/__pycache__/*' -not -path 'herder/_core/*')

PIP := .venv/bin/python -m pip install -qq --disable-pip-version-check

# The product ---------------------------------------------------------------------------------------------------------
# Without build isolation the objects of build/ are used again, so an edit costs seconds.
.venv/installed: $(PACKAGE)
	@echo "Setting up .venv (the first time takes a minute or two)"
	@test -x .venv/bin/python || $(PYTHON) -m venv .venv
	@$(PIP) -c constraints/test.txt scikit-build-core cmake ninja
	@$(PIP) -c constraints/test.txt --no-build-isolation .
	@touch $@

# make hello      the default model answers: make hello QUESTION="What is a herd?"
hello: .venv/installed
	@.venv/bin/herder run $(MODEL) "$(QUESTION)" --stats

# The tests -----------------------------------------------------------------------------------------------------------
VENV := .venv-test
RUN := $(VENV)/bin
BUILD := build/test
NATIVE := CMakeLists.txt $(shell find native -type f)
CMAKE := $(RUN)/cmake -S . -G Ninja -DCMAKE_MAKE_PROGRAM=$(abspath $(RUN))/ninja -DHERDER_TESTS=ON -DHERDER_WERROR=ON

$(VENV)/installed: constraints/test.txt
	@echo "Setting up $(VENV)"
	@test -x $(RUN)/python || $(PYTHON) -m venv $(VENV)
	@$(RUN)/python -m pip install -qq --disable-pip-version-check -r constraints/test.txt
	@touch $@

# The core is built into the source tree (herder/_core is ignored by git), so the tests run what is edited.
$(BUILD)/installed: $(NATIVE) $(VENV)/installed
	@$(CMAKE) -B $(BUILD) > $(VENV)/cmake.log || (cat $(VENV)/cmake.log; false)
	@$(RUN)/cmake --build $(BUILD)
	@$(RUN)/cmake --install $(BUILD) --prefix . > /dev/null
	@touch $@

# make test       every check
test: lint native sanitize
	$(RUN)/python -m pytest $(PYTEST_ARGS)

# make lint       ruff, mypy, import-linter, clang-format
lint: $(VENV)/installed
	$(RUN)/ruff check
	$(RUN)/ruff format --check
	$(RUN)/mypy
	$(RUN)/lint-imports
	@echo clang-format
	@$(RUN)/clang-format --dry-run --Werror $(filter %.cpp %.h,$(NATIVE))

# make format     what lint can repair
format: $(VENV)/installed
	$(RUN)/ruff check --fix
	$(RUN)/ruff format
	$(RUN)/clang-format -i $(filter %.cpp %.h,$(NATIVE))

# make native     the core and its own tests
native: $(BUILD)/installed
	$(RUN)/ctest --test-dir $(BUILD) --output-on-failure

# make sanitize   the same tests under AddressSanitizer and UndefinedBehaviorSanitizer, then under ThreadSanitizer
sanitize: build/sanitize-address,undefined/passed build/sanitize-thread/passed

build/sanitize-%/passed: $(NATIVE) $(VENV)/installed
	@mkdir -p $(@D)
	@$(CMAKE) -B $(@D) -DHERDER_SANITIZE=$* -DCMAKE_BUILD_TYPE=RelWithDebInfo > $(@D)/cmake.log || (cat $(@D)/cmake.log; false)
	@$(RUN)/cmake --build $(@D)
	$(RUN)/ctest --test-dir $(@D) --output-on-failure
	@touch $@

# make unit       the quick tests only: seconds
unit: $(BUILD)/installed
	$(RUN)/python -m pytest -m "not slow and not oracle" $(PYTEST_ARGS)

# make oracle     agreement with implementations we did not write
oracle: $(BUILD)/installed
	$(RUN)/python -m pytest -m oracle $(PYTEST_ARGS)

# make bench      the published figures, the peers beside us: LLAMA_PYTHON=... (bench/README.md); an idle machine, please
bench: .venv/installed $(BUILD)/installed
	@test -n "$(LLAMA_PYTHON)" || (echo "LLAMA_PYTHON is not set: bench/README.md says how to build the peer"; false)
	$(RUN)/python -m bench.cpu --llama-python $(LLAMA_PYTHON) --llama-avx2-python $(LLAMA_AVX2_PYTHON) \
	  --openvino-python $(OPENVINO_PYTHON) --quality-tokens 50000
	$(RUN)/python -m bench.start --llama-python $(LLAMA_PYTHON)

# make clean      all that these rules made
clean:
	rm -rf .venv $(VENV) build dist herder/_core .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
