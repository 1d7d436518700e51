# Two commands do all the set-up: `make demo` and `make test`. Everything installs into .venv; nothing outside this folder is touched.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
# --no-compile: what is imported is compiled then; compiling all of it takes longer than the rest of the installation.
PIP := $(BIN)/python -m pip --disable-pip-version-check install --no-compile --constraint constraints.txt

DEMO := demo
DEMO_USERS ?= 1500
DEMO_ITEMS ?= 400
PORT ?= 8000

TESTS ?= tests
WORKERS ?= 2

help:  ## show this list
	@grep -hE '^[a-z-]+:.*  ## ' Makefile | sed -E 's/^([a-z-]+):.*  ## (.*)/  make \1\t\2/' | expand -t 20

# --- set-up ---------------------------------------------------------------------------------------------------------

install: $(VENV)/.dev  ## everything a developer needs, into .venv

$(VENV)/bin/python:
	@command -v $(PYTHON) > /dev/null || { echo "Prismrec needs Python 3.11 or newer, and there is no '$(PYTHON)'. Name yours: make PYTHON=/path/to/python3 ..." >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Prismrec needs Python 3.11 or newer; '$(PYTHON)' is $$($(PYTHON) --version)" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { echo "'$(PYTHON) -m venv' failed; on Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; }

# torch first and alone: its pinned version decides which build is installed, before anything else can ask for another one.
$(VENV)/.torch: constraints.txt | $(VENV)/bin/python
	$(PIP) "$$(grep '^torch==' constraints.txt)"
	@touch $@

$(VENV)/.train: pyproject.toml constraints.txt $(VENV)/.torch
	$(PIP) --editable '.[train]'
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt $(VENV)/.torch
	$(PIP) --editable '.[dev]'
	@touch $(VENV)/.train $@

# --- demo -----------------------------------------------------------------------------------------------------------
# Every step leaves a stamp in demo/, so a second `make demo` starts the service at once; `make clean` forgets them.

$(DEMO)/data/dataset.json: | $(VENV)/.train
	$(BIN)/prismrec-train data make $(DEMO)/data --users $(DEMO_USERS) --items $(DEMO_ITEMS) --seed 0

$(DEMO)/bundle: training/configs/demo.toml $(DEMO)/data/dataset.json
	$(BIN)/prismrec-train run training/configs/demo.toml --data $(DEMO)/data --store $(DEMO)/store --resume | tee $(DEMO)/train.log
	@tail -n 1 $(DEMO)/train.log | grep -oE 'bundle-[a-z0-9-]+' | tail -n 1 > $@

$(DEMO)/snapshot: $(DEMO)/bundle
	$(BIN)/prismrec-index rebuild --store $(DEMO)/store --bundle "$$(cat $(DEMO)/bundle)" --data $(DEMO)/data
	@touch $@

EXAMPLE := curl -s http://127.0.0.1:$(PORT)/v1/recommendations -H 'content-type: application/json' -d @docs/example-request.json
SERVE := $(BIN)/prismrec-serve --store $(DEMO)/store --history sqlite:$(DEMO)/events.db --host 127.0.0.1 --port $(PORT)

demo: $(DEMO)/snapshot  ## make data, train, export, rebuild the index, and serve it on PORT (8000)
	@printf '\nPrismrec is at http://127.0.0.1:$(PORT) as soon as the log below says so; Ctrl-C stops it. In another terminal:\n\n  %s\n\n' "$(EXAMPLE)"
	@$(SERVE)

demo-check: $(DEMO)/snapshot  ## the same without staying: start the service, show one answer, stop it
	@PRISMREC_HTTP__DRAIN_S=0 $(SERVE) & service=$$!; trap 'kill $$service; wait $$service' EXIT; \
	curl -s -o /dev/null --retry 60 --retry-delay 1 --retry-all-errors --fail http://127.0.0.1:$(PORT)/readyz; \
	$(EXAMPLE) --fail-with-body | $(BIN)/python -m json.tool

# --- quality --------------------------------------------------------------------------------------------------------

test: $(VENV)/.dev  ## every test; a part of them: make test TESTS=tests/unit
	@command -v redis-server > /dev/null || { echo "The tests need redis-server: apt-get install redis-server (Debian, Ubuntu), brew install redis (macOS)" >&2; exit 1; }
	@# A thread a worker: those of two workers on two cores spin against each other.
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile $(TESTS)

lint: $(VENV)/.dev  ## ruff, formatting, spelling
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/typos

fmt: $(VENV)/.dev  ## format, and fix what can be fixed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(VENV)/.dev  ## mypy --strict
	$(BIN)/mypy

imports: $(VENV)/.dev  ## the import contracts
	$(BIN)/lint-imports

docs: $(VENV)/.dev  ## rewrite the parts of the documents that are made from the code
	$(BIN)/python -m tests.docs.reference
	$(BIN)/prismrec-serve openapi > docs/openapi.json.new
	@mv docs/openapi.json.new docs/openapi.json

audit: $(VENV)/.dev  ## ask the vulnerability service about the versions in constraints.txt
	@said="$$($(BIN)/pip-audit --strict --no-deps --disable-pip --requirement constraints.txt 2>&1)" && code=0 || code=$$?; \
	printf '%s\n' "$$said"; \
	if [ $$code -ne 0 ] && ! grep -q '^Found [0-9]* known' <<< "$$said"; then \
	    echo "make audit: the vulnerability service could not be asked about every version; nothing is known of them" >&2; \
	fi; \
	exit $$code

check: lint types imports test  ## all of these: what CI runs

# --- the rest -------------------------------------------------------------------------------------------------------

bench: $(VENV)/.dev  ## stages in process, the service under load, aims, other servers; writes benchmarks/results
	mkdir -p benchmarks/results
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.stages --store "$$($(BIN)/python -m benchmarks.prepare 100000)" \
	    --json benchmarks/results/stages.json | tee benchmarks/results/stages.txt
	$(BIN)/python -m benchmarks.load
	@# Both end with 1 when an aim is missed; the second one is to be run all the same.
	code=0; for part in steady peers; do OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.$$part || code=1; done; exit $$code

chaos: $(VENV)/.dev  ## every fault under load, at full length (about an hour); writes benchmarks/results and docs/reliability.md
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.chaos all; code=$$?; $(BIN)/python -m tests.docs.reference; exit $$code

docker:  ## build the two images (needs a container engine)
	docker build --target service --tag prismrec .
	docker build --target training --tag prismrec-training .

clean:  ## remove the demo, its data and caches (not .venv)
	rm -rf $(DEMO) .bench .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

.PHONY: help install demo demo-check test lint fmt types imports audit check docs bench chaos docker clean
