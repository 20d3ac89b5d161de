# Every target sets up what it needs: `make demo` and `make test` work from a fresh clone.
PYTHON ?= $(shell command -v python3.12 >/dev/null 2>&1 && python3.12 -c '' 2>/dev/null && echo python3.12 || (python3.11 -c '' 2>/dev/null && echo python3.11 || echo python3))
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test test-fast test-slow wheel-check faults floors lint format bench constraints clean

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' || \
	  { echo "widthlab needs Python 3.11 or 3.12; say which with: make PYTHON=/path/to/python3.11"; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $(READY)

demo: $(READY)  ## train the shipped small sweep and print its verdict
	$(BIN)/widthlab run orchestrator/sweeps/small.yaml

# Files of tests are shared out over two processes more than there are cores, as some only wait for
# Ray, those first; every test computes on one thread.
test: $(READY)
	$(BIN)/python -m pytest --numprocesses $$(( $$(getconf _NPROCESSORS_ONLN) + 2 )) --dist loadfile --no-loadscope-reorder

test-fast: $(READY)  ## for daily work: no processes, no Ray, nothing that takes seconds
	$(BIN)/python -m pytest --numprocesses $$(getconf _NPROCESSORS_ONLN) --dist loadfile \
	  --no-processes -m 'not slow and not long'

test-slow: $(READY)  ## proofs of minutes
	$(BIN)/python -m pytest -m slow --timeout 3000

wheel-check: $(READY)  ## build a wheel, and use it in a clean environment from an empty folder
	$(BIN)/python -m pytest -m slow --timeout 3000 tests/widthlab/test_wheel.py

faults: $(READY)  ## kill everything there is at random moments, and compare
	$(BIN)/python -m tests.faults

# What each dependency is used for, and Ray, MLflow and S3 once.
FLOORS := $(addprefix tests/analysis/test_,fit_table.py laws.py loss_optimum.py report.py table.py) \
  $(addprefix tests/trialstore/test_,open_storage.py records.py storage.py storage_away.py) \
  $(addprefix tests/trainers/test_,checkpoint.py data_hub.py data_store.py data_text_files.py \
    data_tokenizer.py engine.py export.py optimizer.py own_block.py spec.py spec_refused.py \
    train.py zero.py) \
  $(addprefix tests/orchestrator/test_,cli.py fit.py from_mlflow.py exporter.py odd_names.py plan.py \
    run.py sweep_file.py) \
  tests/faults/test_object_store.py

floors:  ## try the lowest versions that the ranges of pyproject.toml admit
	rm -rf build/floors
	$(PYTHON) -m venv build/floors
	build/floors/bin/python -m pip install --quiet uv
	build/floors/bin/uv pip compile --quiet --python build/floors/bin/python --extra dev \
	  --resolution lowest-direct --no-header --no-annotate --output-file build/floors.txt pyproject.toml
	build/floors/bin/python -m pip install --quiet --constraint build/floors.txt --editable '.[dev]'
	build/floors/bin/python -m pytest $(FLOORS)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(READY)
	$(BIN)/python benchmarks/orchestration.py
	$(BIN)/python benchmarks/train_step.py

constraints:  ## resolve the newest versions anew, torch's CPU build or not
	$(PYTHON) -m venv build/resolve
	build/resolve/bin/python -m pip install --quiet torch==2.13.0 '.[dev]'
	{ echo '# Exact versions that widthlab was tested with. Regenerate with: make constraints'; \
	  build/resolve/bin/pip freeze | grep -v '^widthlab' | sed 's/+cpu$$//'; } > constraints.txt

clean:
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
