# Sets everything up in .venv and runs it. `make live ARGS="--pattern lattice"` passes options on.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
LIVE := $(VENV)/.live
STUBS := .typing/stubs/tensorrt
PYTEST := QT_QPA_PLATFORM=offscreen $(BIN)/python -m pytest
ARGS ?=

.PHONY: live test test-all lint types floors fast wheel bench constraints clean

# What operators need: no torch.
$(LIVE): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt -e .
	touch $(LIVE)

$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "pip>=25.1" # knows --group
	$(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt -e ".[export,train]" --group dev
	touch $(READY) $(LIVE)

live: $(LIVE)
	@$(BIN)/lowdose live $(ARGS)

bench: $(LIVE)
	@$(BIN)/lowdose bench latency $(ARGS)

# TensorRT's stubs want its libraries, which this needs not: they are fetched alone, for pyright alone (mypy cannot parse them).
$(STUBS): | $(READY)
	$(BIN)/python -m pip install -qq --disable-pip-version-check --no-deps --upgrade --target .typing/stubs "tensorrt-stubs==10.13.*"

lint: $(READY) $(STUBS)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright --pythonpath $(BIN)/python -p .typing/pyright-tensorrt.json

types: $(READY)
	$(BIN)/mypy

floors: $(READY)
	$(BIN)/lint-imports

# Most tests wait for processes and sockets: two at a time. Training's run file by file: torch, its exporter and its
# worker processes in one long-lived process crash now and then.
fast: $(READY)
	$(PYTEST) -n 2 --dist loadfile -m "not slow and not gpu" --ignore tests/training --ignore tests/config $(ARGS)
	$(PYTEST) -q -m "not slow and not gpu" tests/config  # processes with deadlines: one test at a time
	for file in tests/training/test_*.py; do $(PYTEST) -q -m "not slow and not gpu" $$file || [ $$? -eq 5 ] || exit 1; done

# The wheel goes through the sdist, so that deleted files cannot leak in from build/.
wheel: $(READY)
	rm -rf build dist
	$(BIN)/python -m build --quiet --outdir dist
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --upgrade --target build/wheel dist/*.whl
	LOWDOSE_WHEEL=$(CURDIR)/build/wheel $(PYTEST) -m wheel tests/test_wheel.py

test: lint types floors fast wheel

test-all: lint types floors wheel
	$(PYTEST) --ignore tests/training $(ARGS)
	for file in tests/training/test_*.py; do $(PYTEST) -q $$file || exit 1; done

clean:
	rm -rf $(VENV) build dist
