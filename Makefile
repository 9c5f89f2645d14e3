# Every target sets up what it needs: a machine with Python 3.11+, pip and make is enough.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
BENCH_STAMP := $(VENV)/.bench-installed
XEN_STAMP := $(VENV)/.xen-installed

TRACES ?= ../shared/traces/blue-1000requests.swf ../shared/traces/ar-injected-small.lwf

.PHONY: help demo test test-xen test-xen-quick lint protos bench bench-guard faults soak replay floors breaking-baseline clean

help:
	@echo "make demo     the whole story, each step with real answers"
	@echo "make test     the test suite"
	@echo "make test-xen the tests on real Xen: two emulated hosts, built from Debian 12 packages; needs root for apt-get"
	@echo "make test-xen-quick  the quicker part of them"
	@echo "make lint     ruff, mypy, import-linter, buf"
	@echo "make protos   generate the Python code of the API"
	@echo "make bench    all benchmarks, each figure as a ratio to a baseline of the same run; 15 minutes"
	@echo "make bench-guard  the same, and fails where a ratio is a quarter worse than in benchmarks/table.json"
	@echo "make faults   2,000 life cycles through a network that spoils a fifth of all calls"
	@echo "make soak     10 minutes of load: memory and open files"
	@echo "make replay   workload traces through every backfill, checked; TRACES=... for others than ../shared/traces"
	@echo "make floors   the tests against the oldest dependencies supported"

$(STAMP): pyproject.toml protos/build_hook.py $(wildcard protos/workspacebroker/v1/*.proto)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev,foreign]'
	$(BIN)/python protos/build_hook.py >/dev/null
	touch $@

protos: $(STAMP)
	$(BIN)/python protos/build_hook.py

demo: $(STAMP)
	$(BIN)/python -m examples.demo

test: $(STAMP)
	$(BIN)/python -m pytest $(PYTEST_ARGS)

$(XEN_STAMP): $(STAMP)
	$(BIN)/python -m tests.xen.lab packages
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[xen]'
	touch $@

test-xen: $(XEN_STAMP)
	$(BIN)/python -m tests.xen.lab test $(PYTEST_ARGS)

test-xen-quick: $(XEN_STAMP)
	$(BIN)/python -m tests.xen.lab test --quick $(PYTEST_ARGS)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python tools/lint_protos.py

# Accepts the API as it stands as what later changes must not break.
breaking-baseline: $(STAMP)
	$(BIN)/python tools/lint_protos.py --write-baseline

$(BENCH_STAMP): $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[bench]'
	touch $@

bench: $(BENCH_STAMP)
	$(BIN)/python -m benchmarks $(BENCH_ARGS)

# By hand and on a quiet machine: only ratios are compared, but a busy neighbour spoils those, too.
bench-guard: $(BENCH_STAMP)
	$(BIN)/python -m benchmarks --compare benchmarks/table.json $(BENCH_ARGS)

faults: $(STAMP)
	$(BIN)/python -m tests.faults.run --cycles 2000

soak: $(STAMP)
	$(BIN)/python -m tests.faults.soak --minutes 10

replay: $(STAMP)
	$(BIN)/python -m tests.support.replay_matrix $(TRACES) $(REPLAY_ARGS)

floors: $(STAMP)
	$(PYTHON) -m venv .venv-floors
	.venv-floors/bin/python -m pip install --quiet --editable '.[dev]' --constraint tests/floors.txt
	.venv-floors/bin/python -m pytest --ignore tests/contract/test_standin_cli.py $(PYTEST_ARGS)

clean:
	rm -rf $(VENV) .venv-floors dist .mypy_cache .ruff_cache .pytest_cache
