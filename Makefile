# Everything runs in .venv, made from the tested versions in constraints.txt. Options for the quickstart: ARGS="--seed 1"
PYTHON ?= python3
BIN := .venv/bin

.PHONY: quickstart test test-slow lint clean

quickstart: .venv/.installed
	$(BIN)/lma-hf quickstart configs/quickstart.yaml $(ARGS)

test: .venv/.installed-dev lint
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadfile $(ARGS)

test-slow: .venv/.installed-dev
	$(BIN)/pytest -m slow $(ARGS)

lint: .venv/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

.venv/.installed: setup.cfg constraints.txt
	$(PYTHON) -c 'import sys; v = sys.version.split()[0]; sys.exit(sys.version_info < (3, 11) and f"Python 3.11 or newer is needed, this is {v}; choose one with make PYTHON=...")'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --disable-pip-version-check -c constraints.txt -e '.[quickstart]'
	touch $@

.venv/.installed-dev: .venv/.installed
	$(BIN)/pip install --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

clean:
	rm -rf .venv build dist *.egg-info
