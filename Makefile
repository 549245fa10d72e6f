# Two commands: `make demo` makes pictures, `make test` checks everything. `make help` lists the rest.

VENV ?= .venv
OUT ?= out
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check -qq

# Python compiles a module the first time that it is imported, which is less than a tenth of what gets installed. So pip
# compiles nothing, and Python must be free to keep what it compiles.
INSTALL := $(PIP) install --no-compile -c constraints.txt torch==2.13.0
unexport PYTHONDONTWRITEBYTECODE

# The first Python on this machine that is new enough, runs and makes environments; PYTHON=... chooses another. The
# system's comes first: distributions build theirs with profiles, which version managers often leave out, and the tests
# spend most of their time in it.
NEW_ENOUGH := import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))
PYTHON ?= $(shell for p in /usr/bin/python3 python3 python3.13 python3.12 python3.11; do \
	if $$p -c '$(NEW_ENOUGH)' 2>/dev/null; then echo $$p; break; fi; done)

DEMO_PROMPTS := \
	"a big shiny red ball to the left of a small blue cube on grass at sunset" \
	"a shiny yellow torus on a wooden floor by day" \
	"a green cone next to a purple cylinder on snow under a cloudy sky"

.PHONY: help demo test lint style format bench gallery clean

help:
	@echo "make demo    install into $(VENV), make pictures from three prompts, say where they are"
	@echo "make test    install with the development tools, then lint, check types and run all tests"
	@echo "make lint    the linters and the type check alone"
	@echo "make format  format the code"
	@echo "make bench   calotype and the reference side by side"
	@echo "make gallery docs/gallery.md and its pictures: every task of the bundled family"
	@echo "make clean   remove $(VENV), $(OUT) and what the tools left behind"

demo: $(VENV)/.installed
	@$(BIN)/calotype generate $(DEMO_PROMPTS) --model pocket --guidance 5 --seed 7 --output $(OUT)/demo/ \
		--sheet $(OUT)/demo/sheet.png --overwrite

# The types are checked while the tests run, and what is wrong with them is said last. Quick to fail is `make lint`.
test: style
	@echo "Checking the types while the tests run."
	@$(BIN)/mypy > $(VENV)/types.txt 2>&1 & checked=$$!; \
	$(BIN)/python -m pytest -n 2 --dist worksteal; tested=$$?; \
	wait $$checked || { cat $(VENV)/types.txt; exit 1; }; \
	exit $$tested

lint: style
	$(BIN)/mypy

style: $(VENV)/.installed-dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

bench: $(VENV)/.installed-dev
	$(BIN)/python -m benchmarks

gallery: $(VENV)/.installed-dev
	$(BIN)/python docs/figures/gallery.py

clean:
	rm -rf $(VENV) $(OUT) build dist .mypy_cache .ruff_cache .pytest_cache

# A stamp says that an environment is complete and newer than what it was made from.
$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "calotype needs Python 3.11 or newer, and none was found: install one, or name it with PYTHON=..." >&2; exit 1; }
	@echo "Making the virtual environment $(VENV) with $(PYTHON)."
	@$(PYTHON) -m venv $(VENV) || { echo "$(PYTHON) could not make a virtual environment; on Debian or Ubuntu: apt-get install python3-venv." >&2; exit 1; }
	@$(PIP) install --no-compile --upgrade pip || true  # one of some years ago does the same in three times the time

$(VENV)/.installed: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing calotype and what it stands on (some minutes the first time)."
	@$(INSTALL) -e ".[cli]"
	@touch $@

$(VENV)/.installed-dev: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing calotype with its development tools (some minutes the first time)."
	@$(INSTALL) -e ".[dev]"
	@touch $@ $(VENV)/.installed
