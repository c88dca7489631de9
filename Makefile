# make repro   the whole reproduction, from a fresh clone to the report; JOBS=1: one stage at a time (as many as processors)
# make test    all tests
# make faults  every fault of docs/faults.md, the long ones too
# make lint    style, what imports what, and dvc.yaml against the code
# make bench   the benchmarks, one after the other; CIFAR10=FOLDER (train.parquet, test.parquet) for those on images
# PYTHON chooses the interpreter (3.11 or newer) that makes .venv; VENV is another place for it.

PYTHON ?= python3
JOBS ?= $(shell getconf _NPROCESSORS_ONLN)
VENV ?= .venv
BIN := $(abspath $(VENV))/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet -c constraints.txt
export PATH := $(BIN):$(PATH)
export DVC_NO_ANALYTICS := 1

.PHONY: repro test faults lint bench clean help

help:
	@sed -n 's/^# \(make\|PYTHON\)/\1/p' Makefile

repro: $(VENV)/.installed
	scoresmooth params --quiet
	scoresmooth repro --jobs $(JOBS)
	@scoresmooth results

# a worker for each processor, so that one thread is enough for each
test: export OMP_NUM_THREADS := 1
test: $(VENV)/.installed-test
	pytest -n $(JOBS) --dist loadfile $(TESTS)

faults: $(VENV)/.installed-test
	pytest -m faults $(TESTS)

lint: $(VENV)/.installed-test
	ruff check .
	ruff format --check .
	lint-imports --no-logo --no-cache
	scoresmooth dag

bench: $(VENV)/.installed-test
	set -e; for name in network training_step step_profile diffusers_unet orchestration; do python -m benchmarks.$$name; done
	python -m benchmarks.search $(if $(CIFAR10),--data $(CIFAR10))
	python -m benchmarks.closed_form $(if $(CIFAR10),$(CIFAR10)/train.parquet)
	$(if $(CIFAR10),set -e; for name in audit cifar10; do python -m benchmarks.$$name $(CIFAR10)/train.parquet; done)

# Removes the environment. Results (data/, .dvc/cache, .scoresmooth) stay.
clean:
	rm -rf $(VENV)

# An environment that cannot be written to is a container's. Its time stamps say nothing about a clone that is newer.
define install
	@if test -w $(VENV); then set -ex; $(PIP) -e '.[$(extras)]'; cat $^ > $(VENV)/.pins; touch $(VENV)/.installed $@; \
	elif ! cat $^ | cmp -s - $(VENV)/.pins; then \
	  echo "$(VENV) has other pins than pyproject.toml or constraints.txt: docker compose build" >&2; exit 1; fi
endef

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "Python 3.11 or newer is needed: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: extras := pipeline
$(VENV)/.installed: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(install)

$(VENV)/.installed-test: extras := pipeline,test
$(VENV)/.installed-test: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(install)
