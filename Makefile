# `make` alone lists the targets. They need only Python 3.11 or newer, make and a package index.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# A file that is touched after .venv was set up with the tools and the packages of the tests. If the
# lock file or pyproject.toml is newer than this file, .venv is set up again.
READY := $(VENV)/.ready
# The same for a .venv with only the packages of the service. If .venv has the tools too, it is used as
# it is.
RUN_READY := $(or $(wildcard $(READY)),$(VENV)/.run-ready)
# The same for requirements-bench.txt, which adds the peers of the bench.
BENCH_READY := $(VENV)/.bench-ready
# The same for requirements-docs.txt, which adds what builds the documents.
DOCS_READY := $(VENV)/.docs-ready
# The same for requirements-deploy.txt, which adds Helm.
DEPLOY_READY := $(VENV)/.deploy-ready
# The same for requirements-adapters.txt, which adds the frameworks that the library adapts.
ADAPTERS_READY := $(VENV)/.adapters-ready
STATE_DIR ?= .state
SEED_OPTION = $(if $(SEED),--seed $(SEED))

.DEFAULT_GOAL := help
.PHONY: help run restart demo test test-fast test-exhaustive coverage check bench flame scale \
	spec chaos soak leaks docs gen format wheel lock audit cut release clean

run: $(RUN_READY) ## start everything in the foreground; Ctrl-C stops it
	@exec $(BIN)/python -m evershell.commands up

restart: $(RUN_READY) ## restart the programs of the running stack one by one, without losing a call
	@exec $(BIN)/python -m evershell.commands restart

demo: $(RUN_READY) ## show a cancellation and check every promise, on the running stack or on one of its own
	@exec $(BIN)/python -m evershell.commands demo

format: $(READY) ## format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

check: $(READY) ## check format, lint, types, imports, protos, generated files and Envoy's configuration
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python protos/generate.py --check
	$(BIN)/python .make/pages.py --check
	$(BIN)/python .make/sync_client.py --check
	$(BIN)/python .make/prices.py --check
	$(BIN)/python .make/chart.py --check --without-manifests
	$(BIN)/python -m tests.wire.edge.validate

# Each pytest process runs whole test files, in alphabetical order. The short tests wait about half of
# their time, so three processes keep two cores busy. In CI, the tests of a node run beside the long ones.
SHARED_OUT = --dist loadfile --no-loadscope-reorder
SHORT = --ignore-glob='*/long'
# pytest rewrites the assertions of all files, which takes 6 s in each process. It caches the result
# only if PYTHONDONTWRITEBYTECODE is empty.
PYTEST = env PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest

test: $(READY) ## run the tests on real PostgreSQL, Envoy and agents, in about 4 minutes
	@exec $(PYTEST) -n 3 $(SHARED_OUT) $(SHORT) $(PYTEST_OPTIONS)

test-fast: $(READY) ## run a fast part of the tests, in about 20 seconds
	@exec $(PYTEST) $(SHORT) $(addprefix tests/unit/,agents auth cli client core) tests/wire/api \
		tests/clients/documents $(addprefix --ignore=tests/unit/agents/test_,exit.py \
		openai_failures.py openai_model.py program.py tools.py) $(PYTEST_OPTIONS)

# The folders of the long tests. `make soak` runs the ones with the mark `soak`, `make test-exhaustive`
# the others.
LONG = $(sort $(shell find tests -type d -name long))

test-exhaustive: $(READY) $(DOCS_READY) $(ADAPTERS_READY) $(DEPLOY_READY) ## run the long tests: faults, attacks, crash points, fuzzers, manifests, pages
	@exec $(PYTEST) -n 2 $(SHARED_OUT) $(LONG) -m 'not soak' $(PYTEST_OPTIONS)

coverage: $(READY) ## run the tests of make test, and print the lines of the product that they do not reach
	@$(BIN)/coverage erase
	-@$(BIN)/coverage run -m pytest $(SHORT)
	@$(BIN)/coverage combine --quiet
	@$(BIN)/coverage report

bench: $(BENCH_READY) ## compare the speed with the least possible (QUICK=1 ROWS=text ROUNDS=n COMPARE=path)
	@exec $(BIN)/python -m bench

flame: $(BENCH_READY) ## draw where a worker spends its time in CancelTask: docs/flame.svg
	@exec $(BIN)/python -m bench.flame

scale: $(BENCH_READY) ## draw bench.json: the pictures and tables of docs/scale.md
	@exec $(BIN)/python -m bench.scale

spec: $(READY) ## explore the models of the protocol, and find every mutation of them; needs spin and gcc
	@exec $(BIN)/python -m tests.spec

chaos: $(READY) ## cancel tasks while programs, disks and networks fail at random (SECONDS=60 SEED=n LOAD=n PLACE=machine|pair|hosts)
	@$(BIN)/python -m tests.faults.long.chaos --seconds $(or $(SECONDS),60) $(SEED_OPTION) \
		$(and $(LOAD),--load $(LOAD)) $(and $(PLACE),--place $(PLACE))

soak: $(BENCH_READY) $(DOCS_READY) ## run at length, before a release: the other long tests, chaos, and a search for leaks
	$(PYTEST) $(LONG) -m soak $(PYTEST_OPTIONS)
	$(MAKE) chaos leaks

leaks: $(READY) ## make many calls; fail if a program of the stack has grown (CALLS=20000 SEED=n)
	@$(BIN)/python -m tests.faults.long.soak --calls $(or $(CALLS),20000) $(SEED_OPTION)

docs: $(DOCS_READY) ## build the documents: site/index.html
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "site/index.html; with the search: $(BIN)/python -m http.server -b 127.0.0.1 -d site"

gen: $(READY) $(DEPLOY_READY) ## generate gen/, the clients, prices, pages of docs/, and parts of deploy/
	$(BIN)/python protos/generate.py
	$(BIN)/python .make/sync_client.py
	$(BIN)/python .make/pages.py
	$(BIN)/python .make/prices.py
	$(BIN)/python .make/chart.py

wheel: $(READY) ## build the distribution: dist/*.whl and dist/*.tar.gz
	@$(BIN)/hatchling build -d dist

COMPILE_ONLY = $(BIN)/uv pip compile -q --universal --python-version 3.11 --generate-hashes \
	--no-emit-index-url --no-emit-find-links --no-header --no-annotate
COMPILE = $(COMPILE_ONLY) pyproject.toml --extra local --extra kubernetes --extra otel --group build

lock: $(READY) ## compile the lock files requirements*.txt from pyproject.toml
	$(COMPILE) -o requirements.txt
	$(COMPILE) --group dev --constraints requirements.txt -o requirements-dev.txt
	$(COMPILE) --group dev --group bench --constraints requirements-dev.txt -o requirements-bench.txt
	$(COMPILE) --group dev --group docs --constraints requirements-bench.txt -o requirements-docs.txt
	$(COMPILE) --group dev --group adapters --constraints requirements-bench.txt \
		--constraints requirements-docs.txt -o requirements-adapters.txt
	$(COMPILE_ONLY) --group deploy -o requirements-deploy.txt

# pip-audit is not installed in .venv, which has only what the service and its tests need.
AUDITOR = $(BIN)/uv tool run --quiet pip-audit@2.10.1

audit: $(READY) ## look for known vulnerabilities in the locked packages; passes without a network
	@$(BIN)/python .make/audit.py requirements.txt requirements-bench.txt \
		requirements-docs.txt requirements-adapters.txt requirements-deploy.txt \
		envoy/console/package-lock.json clients/typescript/package-lock.json -- $(AUDITOR)

cut: $(READY) $(DEPLOY_READY) ## make the checkout the release VERSION, to be committed (VERSION=0.1.0)
	@$(BIN)/python .make/cut.py $(VERSION)
	@$(BIN)/python .make/chart.py

release: check test audit ## build the files of a release (VERSION=0.1.0 KEY= BASE= PLATFORMS= SOURCE=, docs/releases.md)
	@$(BIN)/python .make/release.py $(VERSION) $(if $(KEY),--key $(KEY)) $(if $(BASE),--base $(BASE)) \
		$(if $(SOURCE),--source $(SOURCE)) $(if $(PLATFORMS),--platform $(PLATFORMS))

clean: ## remove the environment; STATE=1: also keys, database, logs and files of the pods
	@$(PYTHON) .make/clean.py $(if $(filter 1,$(STATE)),--with-state) '$(VENV)' '$(STATE_DIR)'

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# Sets up the environment from a lock file. pip installs the locked uv, and uv, which is faster,
# installs the other packages. Both check every hash. uv does not compile Python, so the last step
# compiles the modules that the programs import. Otherwise, with PYTHONDONTWRITEBYTECODE, a program would
# compile them again at each start.
PROGRAMS := evershell.cli.main, evershell.commands.demo, evershell.app.worker, evershell.app.fleet, evershell.stack.up
define set_up
	@command -v $(PYTHON) >/dev/null || \
		{ echo "$(PYTHON) was not found. Install Python 3.11 or newer." >&2; exit 1; }
	@$(PYTHON) .make/check_python.py '$(PYTHON)'
	@echo "setting up $(VENV)"
	@$(PYTHON) -m venv --clear $(VENV)
	@awk '/^[a-z]/ {uv = /^uv==/} uv' requirements-dev.txt | \
		$(BIN)/python -m pip install -q --require-hashes -r /dev/stdin
	@$(BIN)/uv pip sync -q --python $(BIN)/python --require-hashes $(1)
	@$(BIN)/uv pip install -q --python $(BIN)/python --no-deps --no-build-isolation -e .
	@PYTHONDONTWRITEBYTECODE= $(BIN)/python -P -c 'import $(PROGRAMS)'
endef

$(READY): requirements-dev.txt pyproject.toml
	$(call set_up,requirements-dev.txt)
	@touch $@

$(VENV)/.run-ready: requirements.txt pyproject.toml
	$(call set_up,requirements.txt)
	@$(BIN)/python -m pip uninstall -q -y uv
	@touch $@

$(BENCH_READY): requirements-bench.txt $(READY)
	@echo "adding the peers of the bench to $(VENV)"
	@$(BIN)/uv pip install -q --python $(BIN)/python --require-hashes -r requirements-bench.txt
	@touch $@

$(DOCS_READY): requirements-docs.txt $(READY)
	@echo "adding what builds the documents to $(VENV)"
	@$(BIN)/uv pip install -q --python $(BIN)/python --require-hashes -r requirements-docs.txt
	@touch $@

$(ADAPTERS_READY): requirements-adapters.txt $(READY)
	@echo "adding the frameworks of the adapters to $(VENV)"
	@$(BIN)/uv pip install -q --python $(BIN)/python --require-hashes -r requirements-adapters.txt
	@touch $@

$(DEPLOY_READY): requirements-deploy.txt $(READY)
	@echo "adding Helm to $(VENV)"
	@$(BIN)/uv pip install -q --python $(BIN)/python --require-hashes -r requirements-deploy.txt
	@touch $@
