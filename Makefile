# Everything lives in .venv and build/; `make setup` is a no-op when nothing changed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PACKAGES := $(VENV)/.packages
NATIVE := build/native/.installed
NATIVE_SOURCES := CMakeLists.txt $(shell find src/gossamer/kernels -name '*.cpp' -o -name '*.hpp')

.PHONY: setup check test demo bench clean

setup: $(PACKAGES) $(NATIVE)

$(PACKAGES): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -c constraints.txt torch scikit-build-core
	$(BIN)/python -m pip install -q -c constraints.txt --no-build-isolation \
		-C wheel.cmake=false -e '.[llm,onnx,estimators,graphs,control,scip,peers,video,report,dev]'
	touch $@

$(NATIVE): $(PACKAGES) $(NATIVE_SOURCES)
	PATH="$(CURDIR)/$(BIN):$$PATH" cmake -S . -B build/native -G Ninja \
		-DPython_EXECUTABLE=$(CURDIR)/$(BIN)/python \
		-Dnanobind_DIR=$$($(BIN)/python -m nanobind --cmake_dir)
	PATH="$(CURDIR)/$(BIN):$$PATH" cmake --build build/native
	PATH="$(CURDIR)/$(BIN):$$PATH" cmake --install build/native --prefix src
	touch $@

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/python docs/figures.py --check
	$(BIN)/clang-format --dry-run --Werror $$(find src -name '*.cpp' -o -name '*.hpp')

test: setup
	$(BIN)/python -m pytest

demo: setup
	$(BIN)/gossamer compare --model smollm2 --context 8192 --out gossamer-compare

clean:
	rm -rf build $(VENV) src/gossamer/kernels/_native*.so
