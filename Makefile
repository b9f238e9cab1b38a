# Both doors: `make demo` runs the main job, `make test` the tests. Each makes its own
# virtual environment first; it is made again when what it is made of changes.

PYTHON ?= python3
VENV := .venv-$(notdir $(PYTHON))
BIN := $(VENV)/bin
SOURCES := setup.py pyproject.toml $(wildcard kernels/*.h kernels/*.cc kernels/*.cu)
PIP := $(BIN)/python -m pip install --quiet
PYTEST := $(BIN)/python -m pytest

.PHONY: demo test test-slow parity sanitize lint kernels clean

demo: $(VENV)/installed kernels
	$(BIN)/python -m experiments.create_avatar --output_dir=output/astronaut

# Side by side, since most of the time is XLA compiling on one core.
test: $(VENV)/tested kernels
	$(PYTEST) --numprocesses=auto --maxprocesses=2 --dist=worksteal

test-slow: $(VENV)/tested kernels
	$(PYTEST) -m slow

# Networks at full size beside diffusers on PyTorch, in an environment of their own.
parity: $(VENV)-parity/installed
	$(VENV)-parity/bin/python -m pytest -m slow tests/models -k diffusers

# Minutes instead of seconds under each sanitizer, and under clang's fuzzer if it is here.
sanitize: $(VENV)/tested kernels
	GEODIFF_JAX_SANITIZE_SECONDS=180 $(PYTEST) -m slow tests/kernels

lint: $(VENV)/tested
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright --pythonpath $(BIN)/python

# Another Python's environment may have compiled them for another jax.
kernels: $(VENV)/installed
	$(BIN)/python setup.py --quiet build_kernels --inplace

clean:
	rm -rf .venv-* build *.egg-info

$(VENV)/installed: $(SOURCES)
	$(PYTHON) -m venv $(VENV)
	# Without build isolation: jax is fetched once, and the kernels meet its own headers.
	$(PIP) setuptools wheel "jax>=0.10,<0.12"
	$(PIP) --no-build-isolation --editable ".[portrait]"
	touch $@

$(VENV)-parity/installed: $(SOURCES)
	$(PYTHON) -m venv $(VENV)-parity
	$(VENV)-parity/bin/python -m pip install --quiet ".[test,parity]"
	touch $@

$(VENV)/tested: $(VENV)/installed
	$(PIP) --no-build-isolation --editable ".[portrait,datasets,test]"
	touch $@
