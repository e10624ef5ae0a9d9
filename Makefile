# make demo: adapt an ImageNet network to emoji, and see what that gains; make test: linters and tests. Both set up .venv
# first. make soak: the slow tests, which break trainings, servers and disks, and end in a table.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
# Length of the demo's training, in optimiser steps.
DEMO_STEPS ?= 180
UI_PORT ?= 5000
# Processes that run tests in parallel, one file at a time each, in the order of tests/conftest.py: xdist's own would
# end with the files of few tests, which are the slowest.
TEST_PROCESSES ?= 2
# One thread each, as torch's threads would wait for one another.
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses $(TEST_PROCESSES) --dist loadfile \
	--no-loadscope-reorder
MLFLOW_RUN = PATH="$(CURDIR)/$(BIN):$$PATH" mlflow run . --env-manager local

.PHONY: setup demo test slow soak bench results lint format generate ui wheel image clean

setup: $(INSTALLED)

$(INSTALLED): pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit("Python 3.10 or newer is needed, this is " + sys.version if sys.version_info < (3, 10) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	touch $(INSTALLED)

# The better model becomes champion; a promotion is refused where there is a better one, as after another demo.
demo: setup
	$(MLFLOW_RUN) -e pretrain -P steps=0 -P alias=base
	$(MLFLOW_RUN) -e adapt -P parent=models:/hpt@base -P steps=$(DEMO_STEPS) -P alias=target
	$(MLFLOW_RUN) -e evaluate -P model=models:/hpt@base
	$(MLFLOW_RUN) -e evaluate -P model=models:/hpt@target -P untrained=false
	@echo; $(BIN)/hpt promote models:/hpt@base || true
	@echo; $(BIN)/hpt promote models:/hpt@target || true
	@echo; echo "See the runs, their figures and models:  make ui"

test: setup lint
	$(PYTEST) -m "not slow and not soak" --durations 40

slow: setup
	$(PYTEST) -m slow --durations 15

soak: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "slow or soak"

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: setup
	$(BIN)/python -m pip install --quiet --editable ".[bench]"
	$(BIN)/python benchmarks/training_speed.py ratios
	$(BIN)/python benchmarks/training_speed.py backbones
	$(BIN)/python benchmarks/views_speed.py
	$(BIN)/python benchmarks/pixels_speed.py
	$(BIN)/python benchmarks/feature_speed.py
	$(BIN)/python benchmarks/start_speed.py
	$(BIN)/python benchmarks/loss_curves.py
	$(BIN)/python benchmarks/probe_protocols.py
	$(BIN)/python benchmarks/data_scale.py
	$(BIN)/python benchmarks/tracking_cost.py
	if $(BIN)/python -c "import sys, torch; sys.exit(not torch.cuda.is_available())"; then \
		$(BIN)/python benchmarks/gpu_speed.py; fi

results: setup
	$(BIN)/python benchmarks/paper_experiments.py run
	$(BIN)/python benchmarks/paper_experiments.py page

# MLproject, conda.yaml, docs/reference.md and the type stub, from the settings and pyproject.toml.
generate: setup
	$(BIN)/python -m hpt_mlflow.project_files

ui: setup
	$(BIN)/hpt ui --port $(UI_PORT)

wheel: setup
	rm -rf dist
	$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir dist .

image: wheel
	docker build --tag hpt_mlflow --build-arg PIP_OPTIONS .

clean:
	rm -rf $(VENV) dist build *.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
