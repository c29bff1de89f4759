# The two commands of the README: make demo, make test. Both install into .venv first.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

# Bytecode is written by the first process that imports a module, also where the environment forbids
# it: each of the tests' processes would compile nnU-Net and torch anew, 14 s instead of 0
export PYTHONDONTWRITEBYTECODE :=

.PHONY: install demo test lint soak gpu-check clean

install: $(VENV)/.installed

$(VENV)/.installed: setup.cfg pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --no-compile -e '.[dev]'
	touch $@

demo: install
	$(BIN)/lgesynth demo -o lgesynth_demo

test: install
	$(BIN)/python -m pytest -n 2 --dist worksteal

lint: install
	$(BIN)/ruff check .

# A hundred short epochs: exit code 1 where memory or the epochs' time grows.
soak: install
	$(BIN)/python -m benchmarks.soak -o benchmarks/results/soak.json

# Needs a CUDA GPU; without make or a package registry, see benchmarks/gpu_check.py.
gpu-check: install
	$(BIN)/python -m benchmarks.gpu_check -device cuda -o benchmarks/results/gpu_check.json

clean:
	rm -rf $(VENV) lgesynth_demo build *.egg-info
