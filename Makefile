# The project's two commands are `make demo` and `make test`; each sets up what it needs.
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
TEST_WORKERS ?= 4
COVER ?=

.DEFAULT_GOAL := help
.PHONY: help demo test chaos check bench bench-peers docs format clean

help: ## Show the targets
	@awk 'BEGIN {FS = ":.*## "} /^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(STAMP): pyproject.toml
	@echo "Installing into $(VENV): about a minute, the first time"
	@if command -v uv >/dev/null 2>&1; then \
	  test -x $(BIN)/python || uv venv --quiet --python $(PYTHON) $(VENV); \
	  uv pip install --quiet --python $(BIN)/python -e ".[dev]"; \
	else \
	  test -x $(BIN)/python || $(PYTHON) -m venv $(VENV); \
	  $(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[dev]"; \
	fi
	@touch $(STAMP)

demo: $(STAMP) ## The whole story on the embedded PostgreSQL: enqueue, work, kill a worker, recover
	@$(BIN)/pgq demo

test: $(STAMP) ## All tests but those of `make chaos`, against a real PostgreSQL (PGQUEUE_TEST_DSN, else Docker, else the embedded one); COVER=1: with coverage
	@PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest --ignore=tests/chaos --ignore=tests/long -n $(TEST_WORKERS) --dist worksteal $(if $(COVER),--cov --cov-report=term --cov-fail-under=93)

chaos: $(STAMP) ## Faults against real servers and processes: failover, a pooler, a full disk, a soak (PGQUEUE_CHAOS=long: minutes); the wheel, types, the benchmarks
	@PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest tests/chaos tests/long -n 2 --dist worksteal

check: $(STAMP) ## Linters, formatter, type checker, import rules, docs
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@$(BIN)/python -m pytest -q tests/test_docs.py

bench: $(STAMP) ## All regimes, from drain and latency to recovery and scale, beside their floors in the same run (an hour)
	@$(BIN)/python -m benchmarks

bench-peers: $(STAMP) ## The same beside seven other PostgreSQL queues, installed into .bench-peers (BENCH_PEERS=--quick: minutes)
	@PYTHONDONTWRITEBYTECODE= $(BIN)/python -m benchmarks.peers $(BENCH_PEERS)

docs: $(STAMP) ## Write the generated pages: docs/cli.md, docs/errors.md, docs/glossary.md
	@$(BIN)/python docs/generate.py

format: $(STAMP) ## Sort imports and format the code
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

clean: ## Remove what the targets made
	rm -rf $(VENV) .bench-peers dist build .mypy_cache .ruff_cache .pytest_cache .coverage .coverage.* htmlcov
