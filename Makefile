# `make` alone lists the targets. Python 3.11 or newer, make and the package index are all that they need.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Newer than the lock when the environment is as the lock says.
READY := $(VENV)/.ready
STATE_DIR ?= .state

.DEFAULT_GOAL := help
.PHONY: help run restart demo test test-fast test-exhaustive check bench chaos soak gen format lock clean

run: $(READY) ## start everything in the foreground; Ctrl-C stops it
	@exec $(BIN)/python -m server up

restart: $(READY) ## restart the programs of the running stack one after another, without losing a call
	@exec $(BIN)/python -m server restart

demo: $(READY) ## show a cancellation and check each promise, on the running stack or one of its own
	@exec $(BIN)/python -m server demo

format: $(READY) ## format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

check: $(READY) ## lint, types, floors, protos, drift of gen/, breaking changes, Envoy's configuration
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python protos/generate.py --check
	$(BIN)/python -m tests.edge.validate

test: $(READY) ## run the tests of every behaviour, on real PostgreSQL, real Envoy and real agents
	@exec $(BIN)/python -m pytest --ignore=tests/exhaustive

test-fast: $(READY) ## run the tests that need no running stack, in about 20 seconds
	@exec $(BIN)/python -m pytest tests/core tests/api tests/auth tests/agent tests/test_client.py

test-exhaustive: $(READY) ## run the long tests: faults, crash points, floods, fuzzers, chaos, soak
	@exec $(BIN)/python -m pytest tests/exhaustive

bench: $(READY) ## measure a cancellation beside an empty call, in one run
	@$(BIN)/python -m tests.bench.latency

chaos: $(READY) ## cancel tasks while programs are frozen, killed and restarted and disks fill, at random (SECONDS=60 SEED=n)
	@$(BIN)/python -m tests.exhaustive.chaos --seconds $(or $(SECONDS),60) $(if $(SEED),--seed $(SEED))

soak: $(READY) ## make many mixed calls, and fail if a program of the stack has grown (CALLS=20000 SEED=n)
	@$(BIN)/python -m tests.exhaustive.soak --calls $(or $(CALLS),20000) $(if $(SEED),--seed $(SEED))

gen: $(READY) ## write gen/ from protos/
	$(BIN)/python protos/generate.py

lock: $(READY) ## compile requirements.txt from pyproject.toml
	$(BIN)/uv pip compile -q --extra dev --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
		--no-emit-find-links --no-header --no-annotate pyproject.toml -o requirements.txt

clean: ## remove the environment; with STATE=1 also the state: keys, database, logs, files of the pods
	@$(PYTHON) -c "$$CLEAN" '$(STATE_DIR)' '$(VENV)' '$(STATE)'

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# Refuses while a stack runs: it holds the lock and uses both folders.
define CLEAN
import fcntl, os, shutil, sys
state_dir, environment, with_state = sys.argv[1:]
is_state = os.path.exists(os.path.join(state_dir, "lock"))
if is_state:
    lock = open(os.path.join(state_dir, "lock"))
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        sys.exit("A stack is running on %s. Stop it first; nothing was removed." % state_dir)
shutil.rmtree(environment, ignore_errors=True)
if is_state and with_state == "1":
    shutil.rmtree(state_dir)
elif is_state:
    print("%s was kept: keys, database, logs. `make clean STATE=1` removes it as well." % state_dir)
endef
export CLEAN

# Replaces the long error of pip's resolver by one sentence. Any version of Python can run it.
define CHECK_PYTHON
import sys
if sys.version_info < (3, 11):
    version = ".".join(map(str, sys.version_info[:3]))
    sys.exit("%s is Python %s; 3.11 or newer is needed: make PYTHON=python3.12 ..." % (sys.argv[1], version))
try:
    import ensurepip, venv
except ImportError:
    sys.exit("%s has no venv module; install it (Debian, Ubuntu: apt install python3-venv)." % sys.argv[1])
endef
export CHECK_PYTHON

# The locked uv is installed by pip, and installs the rest: both check every hash.
$(READY): requirements.txt
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) was not found. Install Python 3.11 or newer." >&2; exit 1; }
	@$(PYTHON) -c "$$CHECK_PYTHON" '$(PYTHON)'
	@echo "setting up $(VENV)"
	@$(PYTHON) -m venv --clear $(VENV)
	@awk '/^[a-z]/ {uv = /^uv==/} uv' requirements.txt | $(BIN)/python -m pip install -q --require-hashes -r /dev/stdin
	@$(BIN)/uv pip sync -q --python $(BIN)/python --require-hashes requirements.txt
	@$(BIN)/uv pip install -q --python $(BIN)/python --no-deps --no-build-isolation -e .
	@touch $@
