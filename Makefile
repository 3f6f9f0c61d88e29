# make quickstart   sets up .venv and trains on real data
# make test         sets up .venv and runs the tests
# make lint         format, lint and type checks
# make test-matrix  runs a part of the tests with each supported version
# make docs         builds the pages of docs/ into docs/_build
#
# On a fresh machine with Python 3.11, g++ and make; the set-up takes a few
# minutes the first time (Horovod is compiled) and nothing afterwards.

PYTHON ?= python3
BIN := .venv/bin
export TF_CPP_MIN_LOG_LEVEL ?= 2

.PHONY: quickstart test test-matrix lint docs setup clean

quickstart: setup
	$(BIN)/horovodrun -np 2 $(BIN)/python -m trainers.mnist --dataset=digits \
		--compare=momentum,adam --model_dir=runs/quickstart --overwrite \
		--verbose=2

test: setup
	$(BIN)/python -m pytest -n 2 --durations=10

test-matrix: setup
	$(BIN)/python -m tools.version_matrix

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
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
