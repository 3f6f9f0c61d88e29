# make quickstart   sets up .venv and trains on real data
# make test         sets up .venv and runs all checks, in stages; the first that
#                   fails ends it
#
# The stages, in their order, each also by itself:
# make lint         format, imports, spelling
# make types        mypy
# make docs         builds the pages of docs/ into docs/_build
# make test-unit    one module of the library at a time
# make test-docs    the code of README, docs/ and examples/
# make test-numerical test-distributed test-trainers
#                   values against float64; several processes; the programs
#
# make test-matrix  a part of the tests with each supported version (minutes)
#
# On a fresh machine with Python 3.11, g++ and make; the set-up takes a few
# minutes the first time (Horovod is compiled) and nothing afterwards.

PYTHON ?= python3
BIN := .venv/bin
PYTEST := $(BIN)/python -m pytest -n 2 --durations=10
export TF_CPP_MIN_LOG_LEVEL ?= 2

.PHONY: quickstart test test-matrix lint types docs setup clean

quickstart: setup
	$(BIN)/horovodrun -np 2 $(BIN)/python -m trainers.mnist --dataset=digits \
		--compare=momentum,adam --model_dir=runs/quickstart --overwrite \
		--verbose=2

# The last three stages are one run: their long tests go side by side. The first
# ones run 96 % of the lines of tfkfac/; what other processes run is not counted.
test: setup
	$(MAKE) --no-print-directory lint
	$(MAKE) --no-print-directory types
	$(MAKE) --no-print-directory docs
	$(PYTEST) -m "unit or docs" --cov=tfkfac --cov-fail-under=95 \
		--cov-report=term:skip-covered
	$(PYTEST) -m "numerical or distributed or trainers"

test-%: setup
	$(PYTEST) -m $*

test-matrix: setup
	$(BIN)/python -m tools.version_matrix

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell

types: setup
	$(BIN)/mypy

docs: setup
	$(BIN)/python -m sphinx --fail-on-warning --keep-going --quiet \
		docs docs/_build

setup: .venv/.ready

.venv/.ready: requirements.lock pyproject.toml setup.py tfkfac/build_horovod.py
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check \
		-r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check \
		--no-deps --no-build-isolation --editable .
	$(BIN)/python -m tfkfac.build_horovod
	touch $@

clean:
	rm -rf .venv runs docs/_build *.egg-info
