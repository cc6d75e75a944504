# make demo and make test are all a newcomer needs; both install what is missing first.
SHELL := /bin/bash
PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || echo python3)
BIN := .venv/bin
export FIFTYONE_DO_NOT_TRACK := true
export FIFTYONE_DATABASE_VALIDATION := false
export HF_HUB_DISABLE_TELEMETRY := 1
export TOKENIZERS_PARALLELISM := false

.PHONY: install demo test check prepare docs book bench lock clean

install: .venv/installed

.venv/installed: requirements/requirements.lock setup.py settings.ini pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))' || { echo "The lock is for Python 3.11 and 3.12; give one with: make install PYTHON=/path/to/python3.11"; exit 1; }
	@test -x $(BIN)/pip || $(PYTHON) -m venv .venv || { rm -rf .venv; echo "python3 -m venv failed; on Debian and Ubuntu run: apt-get install python3-venv"; exit 1; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps -r requirements/requirements.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	@touch $@

demo: install
	$(BIN)/hgdpo demo --workspace demo

# Two processes with a thread each: the tests are many small jobs, and threads of two processes only wait for each other.
test: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

check: install
	$(BIN)/ruff check .
	$(BIN)/basedpyright
	$(BIN)/nbdev_clean && $(BIN)/nbdev_export
	@test -z "$$(git status --porcelain)" || { git status --porcelain; echo "Notebooks and modules differ from what is committed; commit what nbdev_clean and nbdev_export wrote."; exit 1; }

# What to run before a commit: modules from notebooks, lint, types, tests.
prepare: install
	$(BIN)/nbdev_export && $(BIN)/nbdev_clean
	$(BIN)/ruff check .
	$(BIN)/basedpyright
	$(MAKE) test

# A static site in site/, every chapter run; a chapter is run again when it or the package changed.
docs: install
	$(BIN)/python docs/build.py

# The notebooks of docs/book.txt with their outputs, as a forge shows them.
book: install
	$(BIN)/python docs/book.py

bench: install
	$(BIN)/python benchmarks/curate.py 1000 10000 100000
	$(BIN)/python benchmarks/size.py 40 400 4000 20000
	$(BIN)/python benchmarks/kills.py
	$(BIN)/python benchmarks/plan.py
	$(BIN)/python benchmarks/session.py
	$(BIN)/python benchmarks/session.py --speed 10000
	$(BIN)/python benchmarks/train.py count
	$(BIN)/python benchmarks/train.py speed
	$(BIN)/python benchmarks/train.py caching
	$(BIN)/python benchmarks/shapes.py
	$(BIN)/python benchmarks/hands.py
	$(BIN)/python benchmarks/learned_flags.py

lock:
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --no-header --no-annotate requirements/requirements.in --override requirements/overrides.txt -o requirements/requirements.lock

clean:
	rm -rf .venv demo site build
