# Two commands do everything: `make run` and `make test`. `make help` lists the rest.
SHELL := /bin/bash
PYTHON ?= python3
BIN := .venv/bin
PROTOS := $(wildcard protos/chatkit_grpc/v1/*.proto)
SERVICES := $(wildcard protos/chatkit_grpc/v1/*_service.proto)

.DEFAULT_GOAL := help
.PHONY: help run test check generate generated format lint types breaking bench faults fuzz audit lock clean

help: ## list the commands
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# What is installed is what constraints.txt says, hash by hash; the project itself is installed in place.
.venv/installed: constraints.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "chatkit-grpc needs Python 3.11 or newer; say which with: make PYTHON=python3.12"; exit 1; }
	@echo "Installing into .venv (once, about a minute) …"
	@$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --requirement constraints.txt
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

run: .venv/installed ## run the whole system on this machine: database, server, bridge, page
	@exec $(BIN)/python -m server.local

test: .venv/installed ## run all tests against a real PostgreSQL, real gRPC and real HTTP
	@$(BIN)/python -m pytest

check: generated lint types breaking ## everything that finds mistakes without running the code

generate: .venv/installed ## write the Python code of the protos anew
	@cd protos && rm -f chatkit_grpc/v1/*_pb2*.py chatkit_grpc/v1/*_pb2*.pyi
	@cd protos && ../$(BIN)/python -m grpc_tools.protoc --proto_path=. --python_out=. \
		--plugin=protoc-gen-mypy=../$(BIN)/protoc-gen-mypy --mypy_out=quiet:. $(PROTOS:protos/%=%)
	@cd protos && ../$(BIN)/python -m grpc_tools.protoc --proto_path=. --grpc_python_out=. \
		--plugin=protoc-gen-mypy_grpc=../$(BIN)/protoc-gen-mypy_grpc --mypy_grpc_out=quiet:. $(SERVICES:protos/%=%)

generated: generate ## fail where the generated code is not what the protos say
	@git diff --exit-code --stat -- 'protos/**_pb2*.py' 'protos/**_pb2*.pyi' || { echo "Generated code was stale; it is fresh now: commit it."; exit 1; }
	@test -z "$$(git ls-files --others --exclude-standard -- 'protos/**_pb2*')" || { echo "Generated code is not committed yet: git add protos"; exit 1; }

format: .venv/installed ## format all code
	@$(BIN)/ruff format --quiet .
	@$(BIN)/ruff check --quiet --fix .
	@$(BIN)/buf format --write

lint: .venv/installed ## format and lint, Python and protos
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/buf format --exit-code --diff
	@$(BIN)/buf lint

types: .venv/installed ## check types, strictly
	@$(BIN)/mypy

# Against the main that this work will join; there is none in the very first clone.
breaking: .venv/installed ## fail where a change to the protos would break a client
	@base=$$(git rev-parse --quiet --verify origin/main || git rev-parse --quiet --verify main || true); \
	if [ -n "$$base" ] && git cat-file -e "$$base:buf.yaml" 2>/dev/null; \
	then $(BIN)/buf breaking --against ".git#ref=$$base"; \
	else echo "buf breaking: no main with protos yet, nothing to compare with"; fi

bench: .venv/installed ## compare the SDK in-process with bridge + server, side by side
	@$(BIN)/python -m tests.load.bench
	@$(BIN)/python -m tests.load.bench_store

# About 40 minutes; `make faults SCALE=0.1` is a tenth of it.
SCALE ?= 1
faults: .venv/installed ## break the system in every way, hundreds of times, and count what was lost
	@$(BIN)/python -m tests.faults --scale $(SCALE)

# `make fuzz EXAMPLES=100000` for longer; other ones each time.
EXAMPLES ?= 10000
fuzz: .venv/installed ## send nonsense to both doors, thousands of requests a test
	@FUZZ_EXAMPLES=$(EXAMPLES) $(BIN)/python -m pytest tests/test_fuzz.py --capture=no

audit: .venv/installed ## look the pinned dependencies up in the databases of known vulnerabilities (needs the network)
	@$(BIN)/uv tool run pip-audit --requirement constraints.txt --require-hashes --disable-pip --strict

lock: .venv/installed ## resolve the dependencies anew and write constraints.txt
	@$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-annotate \
		--no-emit-index-url --no-emit-find-links --group dev --all-extras pyproject.toml --output-file constraints.txt

clean: ## remove what was installed and built; the database in .data stays
	@rm -rf .venv .mypy_cache .ruff_cache .pytest_cache dist
