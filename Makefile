# Works with GNU make 3.81 (macOS) and newer. `make` alone lists the targets.
.DEFAULT_GOAL := help
.PHONY: help run demo test check format lock mutants chaos recovery chaos-peers bench bench-check bench-limit bench-page bench-peers bench-scale test-servers test-containers wheel clean

PY := .venv/bin/python
CODE := $(wildcard src tests scripts examples benchmarks)
FLOORS := $(wildcard tests/unit tests/conformance tests/property tests/integration tests/e2e)
# Processes that run the tests; 0 runs them in one.
TEST_PROCESSES ?= 2
# How often a test that failed is tried again; 0 finds those that fail now and then.
TEST_RERUNS ?= 1
# Further arguments for pytest: make test PYTEST_ARGS='-k submit'
PYTEST_ARGS ?=
# LOCK_FLAGS=--upgrade takes the newest releases, LOCK_FLAGS='--upgrade-package redis' one.
LOCK_FLAGS ?=

export PYTHON

help:  ## List what there is
	@sed -n 's/^\([a-z-]*\):.*  ## \(.*\)/  make \1|\2/p' $(firstword $(MAKEFILE_LIST)) | awk -F'|' '{ printf "%-24s%s\n", $$1, $$2 }'

# Not `.venv/bin/penstock up` as a rule of its own: exec hands make's signals on, and Ctrl-C reaches it directly.
run:  ## Install what is pinned and start everything at 127.0.0.1:5000; TASKS=my.module adds your tasks
	@scripts/bootstrap.sh run && exec .venv/bin/penstock up $(TASKS)

demo:  ## Submit jobs that succeed, recover and fail to a running instance, and print each step
	@scripts/bootstrap.sh run && exec .venv/bin/penstock demo

test: check  ## Everything: checks, tests with a coverage floor, the built wheel
	$(PY) -m pytest -n $(TEST_PROCESSES) --reruns $(TEST_RERUNS) -r aR --cov --cov-report=term $(PYTEST_ARGS) $(FLOORS)
	@$(MAKE) --no-print-directory wheel
	$(PY) scripts/wheel_smoke.py dist/*.whl

check:  ## Formatting, lint, types and import layers
	@scripts/bootstrap.sh dev
	$(PY) -m ruff format --check $(CODE)
	$(PY) -m ruff check $(CODE)
	$(PY) -m mypy $(CODE)
	.venv/bin/lint-imports

format:  ## Format the code and apply safe fixes
	@scripts/bootstrap.sh dev
	$(PY) -m ruff format $(CODE)
	$(PY) -m ruff check --fix $(CODE)

COMPILE = .venv/bin/uv --no-config pip compile --quiet --universal --python-version 3.11 --generate-hashes \
	--no-emit-index-url --custom-compile-command 'make lock' $(LOCK_FLAGS)
lock:  ## Pin the requirements anew from pyproject.toml and the .in files
	@test -x .venv/bin/uv || scripts/bootstrap.sh dev
	$(COMPILE) pyproject.toml -o requirements.txt
	$(COMPILE) requirements-build.in -c requirements.txt -o requirements-build.txt
	$(COMPILE) requirements-embedded.in -c requirements.txt -o requirements-embedded.txt
	$(COMPILE) pyproject.toml requirements-dev.in -c requirements-embedded.txt -o requirements-dev.txt
	@for peer in benchmarks/peers/requirements/*.in benchmarks/profiler/*.in; do $(COMPILE) $$peer -o $${peer%.in}.txt || exit 1; done

mutants:  ## Check that the tests notice when a piece of a Lua script is taken out
	@scripts/bootstrap.sh dev
	$(PY) -m scripts.mutants

chaos:  ## Break a running system at random for a quarter of an hour and count the jobs (CHAOS_SECONDS, CHAOS_SEED, CHAOS_PARTS)
	@scripts/bootstrap.sh dev
	$(PY) -m tests.chaos.run

recovery:  ## Measure how long the jobs of what was killed wait
	@scripts/bootstrap.sh dev
	$(PY) -m benchmarks.recovery

chaos-peers:  ## Kill the worker of each other system halfway through a thousand jobs and count them; ten minutes
	@scripts/bootstrap.sh dev
	$(PY) -m benchmarks.peers.faults

# Further arguments: make bench BENCH_ARGS='--repeats 9 --only run,http'
BENCH_ARGS ?=
bench:  ## Measure how fast it is: jobs run, submits, latency; under five minutes on a machine that does nothing else
	@scripts/bootstrap.sh dev
	$(PY) -m benchmarks.throughput $(BENCH_ARGS)

bench-check:  ## Compare a fresh short run with the committed figures, as ratios to a loop of the same run
	@scripts/bootstrap.sh dev
	$(PY) -m benchmarks.check $(BENCH_ARGS)

bench-scale:  ## Measure with up to a million jobs queued, delayed and finished, with more processes and partitions
	@scripts/bootstrap.sh dev
	$(PY) -m benchmarks.scale $(BENCH_ARGS)

bench-limit:  ## Measure where each microsecond of a job goes
	@scripts/bootstrap.sh dev
	$(PY) -m benchmarks.limit $(BENCH_ARGS)

bench-page:  ## Write the figures of these into docs/performance.md
	@scripts/bootstrap.sh dev
	$(PY) -m benchmarks.page

bench-peers:  ## The same beside other job systems, installed in environments of their own; about ten minutes
	@scripts/bootstrap.sh dev
	$(PY) -m benchmarks.peers.run $(BENCH_ARGS)

test-servers:  ## Run the store's tests on a cluster, under sentinels, on Redis 7.0 and over TLS (KINDS='cluster redis7')
	@scripts/bootstrap.sh dev
	scripts/test_servers.sh $(KINDS)

test-containers:  ## Build the image and run the Compose file for real
	scripts/test_containers.sh

wheel:  ## Build the source archive and the wheel in dist/
	@scripts/bootstrap.sh dev
	rm -rf dist
	$(PY) -m build --no-isolation --outdir dist .

clean:  ## Remove what was built and cached; leaves .venv and .penstock
	rm -rf build dist htmlcov .coverage .coverage.* .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	find src tests scripts examples benchmarks -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true
