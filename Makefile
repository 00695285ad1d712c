# book · test · slow · browser · claims · lab · refresh · clean, all in .venv.  `make book PYTHON=python3.12` picks the interpreter.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
TAGS   ?= test,slow,data,gpu

export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: book test slow browser claims lab refresh clean
.DEFAULT_GOAL := book

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "$(PYTHON) is $$($(PYTHON) --version 2>&1): Python 3.11 or newer is needed, as in make book PYTHON=python3.12"; exit 1; }
	@echo "Installing into $(VENV) (some gigabytes with PyTorch, once)"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --progress-bar on --editable '.[all]'
	@touch $@

book: $(STAMP)  ## run every chapter and render the report
	@$(BIN)/nnbook run

test: $(STAMP)  ## what a change must pass in minutes: lint, types, layers, quick tests, chapters under nbval, quick figures
	$(BIN)/python -m ruff check
	$(BIN)/python -m ruff format --check
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto -m "not slow and not data and not gpu and not browser"
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile --nbval-lax --nbval-current-env notebooks

slow: $(STAMP)  ## the other tests: kills, clusters, every check of scikit-learn, long fits
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto -m "slow and not data and not gpu and not browser" --ignore tests/figures

browser: $(STAMP)  ## the book in Chromium: JupyterLab with every slider, the site link by link; skipped without one
	$(BIN)/python -m pytest -m browser

claims: $(STAMP)  ## every stated figure, measured: make claims TAGS=test, slow, data or gpu
	@$(BIN)/python -m pytest tests/figures --tags $(TAGS) --tb=short -rN

lab: $(STAMP)
	$(BIN)/jupyter lab notebooks

refresh: $(STAMP)  ## store the chapters with the outputs of a fresh default run on a CPU
	CUDA_VISIBLE_DEVICES= $(BIN)/jupyter nbconvert --log-level WARN --to notebook --execute --inplace notebooks/[0-9]*.ipynb

clean:  ## what runs wrote, and the environment; recorded figures and data stay
	rm -rf $(VENV) build *.egg-info .pytest_cache .ruff_cache .hypothesis
	find reports -mindepth 1 -maxdepth 1 ! -name recorded -exec rm -rf {} +
