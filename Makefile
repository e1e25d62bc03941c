# `make` alone lists the targets. Every target sets up what it needs by itself.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export EMULATOR
export CARGO_TERM_COLOR ?= never

RUST := Cargo.toml Cargo.lock $(shell find rust -name '*.rs' -o -name Cargo.toml)

.DEFAULT_GOAL := help
.PHONY: help build test test-rust test-python slow lint sanitize emulate format bench instructions docs wheel test-wheel demo clean

help:  ## List the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

build: $(VENV)/.built  ## Create .venv and install ltde in release mode with the test extra

$(VENV)/.venv:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	touch $@

$(VENV)/.built: $(VENV)/.venv pyproject.toml $(RUST)
	$(BIN)/python -m pip install --quiet --editable '.[test,lint]'
	touch $@

demo: build  ## Learn to route through Sioux Falls, and drive with 100 to infinitely many agents
	$(BIN)/python examples/sioux_falls.py

test: test-rust test-python  ## Run the Rust and the Python tests

test-rust:  ## Run the Rust tests (no Python needed)
	cargo test --locked

test-python: build  ## Run the Python tests
	$(BIN)/python -m pytest -q

slow: build  ## Run the long statistics
	cargo test --locked --release -- --ignored
	$(BIN)/python -m pytest -q -m slow

lint: build  ## rustfmt, clippy, rustdoc, ruff, mypy and stubtest, warnings as errors
	cargo fmt --all --check
	cargo clippy --locked --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --locked --no-deps --quiet
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m mypy.stubtest ltde._core

sanitize:  ## Check the memory of the core: valgrind, and with a nightly Rust AddressSanitizer and Miri
	sh tests/sanitize.sh

emulate:  ## Test the AVX-512 code of the core in an emulator: EMULATOR="sde64 -skx --"
	sh tests/emulate.sh

format: build  ## Format Rust and Python
	cargo fmt --all
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: build  ## Measure speed beside peers and fill docs/performance.md
	-$(BIN)/python -m pip install --quiet '.[bench]'
	$(BIN)/python benchmarks/simulation.py
	$(BIN)/python benchmarks/scaling.py
	$(BIN)/python benchmarks/training.py
	$(BIN)/python benchmarks/actors.py
	cargo bench --locked

instructions:  ## Count the instructions of a step under valgrind; ARGUMENTS=--accept takes them as the new ones
	$(PYTHON) benchmarks/instructions.py $(ARGUMENTS)

docs: $(VENV)/.docs  ## Build the documentation site into docs/_build/html
	$(BIN)/sphinx-build -W -q -b html docs docs/_build/html

$(VENV)/.docs: $(VENV)/.built
	$(BIN)/python -m pip install --quiet --editable '.[docs]'
	touch $(VENV)/.built $@

wheel: $(VENV)/.venv  ## Build the wheel into dist/
	rm -rf dist
	$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir dist .

test-wheel: wheel  ## Install the wheel in a clean environment outside the checkout and test it
	sh tests/wheel.sh dist/*.whl

clean:  ## Remove everything that the targets made
	rm -rf $(VENV) dist target docs/_build
