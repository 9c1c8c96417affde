# make workbook   run the chapters and write their HTML pages
# make test       check everything, as continuous integration does
#
# Both set up .venv by themselves from requirements.lock, with uv if it is there and with pip if not.
# They need git, make and Python 3.11 or later.  `make UV= ...` does without uv;
# `make PYTHON=/path/to/python3.12 ...` names the Python; `make clean install EXTRAS=cuda` (or tpu)
# adds what JAX needs to use an accelerator.

SHELL := /bin/sh
BIN := .venv/bin
PRESET ?= laptop
LAB_FLAGS ?=
LOCK_FLAGS ?=
EXTRAS ?=
STAGES := lint typecheck notebooks pytest browser

UV ?= $(shell uv --version >/dev/null 2>&1 && command -v uv)
NEW_ENOUGH := import sys; sys.exit(sys.version_info < (3, 11))
PYTHON ?= $(shell for python in python3 python3.13 python3.12 python3.11 python; do \
	"$$python" -c '$(NEW_ENOUGH)' 2>/dev/null && { command -v "$$python"; break; }; done)

# What the user's shell adds to Python's or pip's ways must not reach .venv.
unexport PYTHONHOME PYTHONPATH VIRTUAL_ENV CONDA_PREFIX PIP_USER
export UV_PYTHON_DOWNLOADS := never
export UV_SYSTEM_CERTS ?= 1

# A .venv that was moved, or whose Python is gone, does not count as installed.
$(shell [ "$$(cat .venv/.installed 2>/dev/null)" = "$$(pwd -P)" ] && $(BIN)/python -c '' || rm -f .venv/.installed)

# --no-deps: the lock is complete, and leaves out what pyproject.toml's tool.uv says.
ITSELF := $(if $(EXTRAS),-e '.[$(EXTRAS)]',--no-deps -e .)
define WITH_UV
"$$uv" venv --quiet --python "$$python" .venv && \
UV_COMPILE_BYTECODE=1 "$$uv" pip sync --quiet --python $(BIN)/python --require-hashes requirements.lock && \
"$$uv" pip install --quiet --python $(BIN)/python --no-build-isolation $(ITSELF)
endef
define WITH_PIP
{ "$$python" -c 'import venv, ensurepip' 2>/dev/null || \
	{ echo "$$python has no venv module: install it (Debian, Ubuntu: apt install python3-venv), or uv."; false; }; } && \
"$$python" -m venv .venv && \
$(BIN)/python -m pip install $(PIP_FLAGS) --no-deps --require-hashes -r requirements.lock && \
$(BIN)/python -m pip install $(PIP_FLAGS) --no-build-isolation $(ITSELF)
endef
PIP_FLAGS := --quiet --disable-pip-version-check

.PHONY: help workbook lab test test-slow bench results $(STAGES) install lock clean

help: ## this list
	@grep -E '^[a-z-]+:.*## ' $(firstword $(MAKEFILE_LIST)) | sed -E 's/:.*## /\t/' | expand -t 14

workbook: .venv/.installed ## run every chapter at PRESET=laptop (or smoke, full), with HTML pages
	@$(BIN)/isolab workbook --preset $(PRESET)

lab: .venv/.installed ## open JupyterLab on the notebooks
	@$(BIN)/jupyter lab --notebook-dir=notebooks $(LAB_FLAGS)

test: .venv/.installed ## lint, typecheck, notebooks, pytest, browser; seconds per stage at the end
	@report=; failed=; \
	for stage in $(STAGES); do \
		printf '\n== %s\n' "$$stage"; \
		start=$$(date +%s); \
		$(MAKE) --no-print-directory "$$stage" || failed="$$failed $$stage"; \
		report="$$report$$(printf '%5d s  %s' $$(($$(date +%s) - start)) "$$stage")\n"; \
	done; \
	printf "\n== seconds per stage\n$$report"; \
	if [ -n "$$failed" ]; then echo "FAILED:$$failed"; exit 1; fi

results: .venv/.installed ## golden verdicts and README's tables from data/reference
	@$(BIN)/python -m isolab.chapters.golden

lint: .venv/.installed ## ruff, over code and notebooks; README's results against golden.json
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/lint-imports
	@$(BIN)/python -m isolab.chapters.golden --check

typecheck: .venv/.installed ## mypy --strict over isolab/
	@$(BIN)/mypy

notebooks: .venv/.installed ## every chapter at the smoke preset, by papermill
	@$(BIN)/isolab workbook --preset smoke --out build/smoke --at-once 2

pytest: .venv/.installed ## the tests, but for the slow ones and those in a browser
	@$(BIN)/python -m pytest -n 2 --dist worksteal --durations=15 --ignore=tests/browser

# One process: these share a JupyterLab and a browser, and time what they see.
browser: .venv/.installed ## the lab in JupyterLab and Chromium; skipped where there is no browser
	@$(BIN)/python -m pytest tests/browser --durations=5

test-slow: .venv/.installed ## the slow tests
	@$(BIN)/python -m pytest -m slow --durations=0

bench: .venv/.installed ## the benchmarks: they print, and never fail for being slow
	@PYTHONPATH=tests $(BIN)/python -m benchmarks

install: .venv/.installed ## set up .venv and nothing else
	@echo ".venv is set up: $$($(BIN)/python --version), $$($(BIN)/isolab --version)"

lock: ## bring requirements.lock up to pyproject.toml (needs uv; LOCK_FLAGS=--upgrade renews all)
	@uv pip compile pyproject.toml --universal --python-version 3.11 --generate-hashes \
		--no-emit-index-url --quiet $(LOCK_FLAGS) \
		--extra test --extra dev -o requirements.lock

clean: ## remove .venv, build/ and the caches; results in data/ stay
	@rm -rf .venv build dist .hypothesis .mypy_cache .pytest_cache .ruff_cache

# The stamp is written last, so a set-up that was interrupted is done anew.
.venv/.installed: pyproject.toml requirements.lock
	@python='$(PYTHON)'; uv='$(UV)'; start=$$(date +%s); \
	if ! "$${python:-python3}" -c '$(NEW_ENOUGH)' 2>/dev/null; then \
		echo "isolab needs Python 3.11 or later; found: $$("$${python:-python3}" --version 2>/dev/null || echo none)."; \
		echo "Install one, or name it: make PYTHON=/path/to/python3.12 ..."; exit 1; \
	fi; \
	echo "Setting up .venv: $$("$$python" --version), by $${uv:-pip, which takes about a minute} ..."; \
	rm -rf .venv; \
	if [ -n "$$uv" ] && ! { $(WITH_UV); }; then \
		echo "uv could not; trying pip, which takes about a minute ..."; rm -rf .venv; uv=; \
	fi; \
	if [ -z "$$uv" ]; then $(WITH_PIP); fi && \
	pwd -P > $@ && echo "Set up .venv in $$(($$(date +%s) - start)) s"
