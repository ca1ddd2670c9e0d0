# What one types in a checkout; `make` alone lists it. Needs make, bash and Python 3.11 or newer, and sets up the rest.
#
#   PYTHON=python3.11  another interpreter, in a virtual environment of its own
#   VENV=DIRECTORY     another place for the virtual environment
#   TESTS=PATHS        only these tests            JOBS=N   tests in N processes
#   MARKS=EXPRESSION   only tests with such marks
#   PREFIX=DIRECTORY   where `make install` puts it (/usr/local)     DESTDIR=DIRECTORY   put before every path

SHELL := /bin/bash
# Where the environment forbids bytecode files, every process of a test would compile the whole daemon again.
unexport PYTHONDONTWRITEBYTECODE
PYTHON ?=
VENV ?= .venv$(if $(PYTHON),-$(notdir $(PYTHON)))
TESTS ?= tests
JOBS ?= 2
BENCH ?=
MARKS ?= not soak and not system

SETUP := PYTHON='$(PYTHON)' bash .ci/setup '$(VENV)'
SETUP_NEEDS := pyproject.toml .ci/setup .ci/find-python

.DEFAULT_GOAL := help
.PHONY: help venv test lint format demo soak bench clean install uninstall deb test-system

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-11s %s\n", $$1, $$2 }' Makefile

demo: $(VENV)/.installed ## two daemons and a signalling server on this machine, talking
	$(VENV)/bin/rondevud demo
	@echo "Both commands, rondevud and rondevuctl, are there in this shell after:  . $(VENV)/bin/activate"

venv: $(VENV)/.installed-dev ## the virtual environment, with all that development needs

test: $(VENV)/.installed-dev ## all tests but the long ones
	$(VENV)/bin/python -m pytest -q -n $(JOBS) --dist load --maxschedchunk 1 -m '$(MARKS)' $(TESTS)

test-system: MARKS = system and not soak
test-system: TESTS = tests/system
test-system: $(VENV)/.installed-dev ## as root: the Debian package on machines of its own, in containers; MARKS=system: all
	@exec bash tests/system/run $(VENV)/bin/python -q -n 0 --durations=10 -m '$(MARKS)' $(TESTS)

lint: $(VENV)/.installed-dev ## style and types
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

format: $(VENV)/.installed-dev ## put the source into shape
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

soak: $(VENV)/.installed-dev ## the long tests: days; TESTS=… names some of them
	RONDEVUD_LINK_EXAMPLES=$${RONDEVUD_LINK_EXAMPLES:-50000} $(VENV)/bin/python -m pytest -m 'soak and not system' $(TESTS)

bench: $(VENV)/.installed-bench ## measure, beside the raw engines; BENCH="--quick" for a rough idea, BENCH=--help
	RONDEVUD_TIME_SCALE=$${RONDEVUD_TIME_SCALE:-4} $(VENV)/bin/python -m tests.bench $(BENCH)

install: ## a service of this machine: programs, units, manual pages
	@PREFIX='$(PREFIX)' DESTDIR='$(DESTDIR)' SYSCONFDIR='$(SYSCONFDIR)' PYTHON='$(PYTHON)' bash installation/install

uninstall: ## take away what install put there
	@PREFIX='$(PREFIX)' DESTDIR='$(DESTDIR)' SYSCONFDIR='$(SYSCONFDIR)' bash installation/install uninstall

deb: ## a Debian package, in dist
	@bash installation/deb

clean: ## remove what the other targets made
	rm -rf .venv .venv-* .mypy_cache .pytest_cache .ruff_cache .hypothesis build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The demo does not wait for the tools of development; who has those has the demo's needs too.
$(VENV)/.installed: $(SETUP_NEEDS)
	@[ -e $(VENV)/.installed-dev -a $(VENV)/.installed-dev -nt pyproject.toml ] || $(SETUP)
	@touch $@

$(VENV)/.installed-dev: $(SETUP_NEEDS)
	@$(SETUP) dev
	@touch $@ $(VENV)/.installed

$(VENV)/.installed-bench: $(VENV)/.installed-dev
	$(VENV)/bin/python -m pip --disable-pip-version-check -q install -e '.[bench]'
	@touch $@
