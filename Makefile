# Everything lives in .venv and build/; `make setup` is a no-op when nothing changed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PACKAGES := $(VENV)/.packages
NATIVE := build/native/.installed
NATIVE_SOURCES := CMakeLists.txt $(shell find src/gossamer/kernels -name '*.cpp' -o -name '*.hpp')

.PHONY: setup check docs test demo clean

setup: $(PACKAGES) $(NATIVE)

$(PACKAGES): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -c constraints.txt torch scikit-build-core
	$(BIN)/python -m pip install -q -c constraints.txt --no-build-isolation \
		-C wheel.cmake=false \
		-e '.[llm,onnx,estimators,control,decisions,graphs,peers,scip,video,report,docs,dev]'
	touch $@

$(NATIVE): $(PACKAGES) $(NATIVE_SOURCES)
	PATH="$(CURDIR)/$(BIN):$$PATH" cmake -S . -B build/native -G Ninja \
		-DPython_EXECUTABLE=$(CURDIR)/$(BIN)/python \
		-Dnanobind_DIR=$$($(BIN)/python -m nanobind --cmake_dir)
	PATH="$(CURDIR)/$(BIN):$$PATH" cmake --build build/native
	PATH="$(CURDIR)/$(BIN):$$PATH" cmake --install build/native --prefix src
	touch $@

check: setup docs
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/python docs/figures.py --check
	$(BIN)/clang-format --dry-run --Werror $$(find src -name '*.cpp' -o -name '*.hpp')

docs: setup
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

test: setup
	$(BIN)/python -m pytest

demo: setup
	$(BIN)/gossamer compare --model smollm2 --context 8192 --out gossamer-compare

clean:
	rm -rf build $(VENV) src/gossamer/kernels/_native*.so
