# Every target says what it does as it goes and works a second time in seconds.
SHELL := /bin/bash
PY := .venv/bin/python
STAMP := .venv/.installed
export PYTHONDONTWRITEBYTECODE ?=

.PHONY: help venv lock check fix test test-unit test-native test-api test-e2e test-vllm demo demo-down crds chart images cluster bench clean

help: ## this list
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "  %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

venv: $(STAMP) ## .venv with the locked dependencies and .venv/bin/moorage

$(STAMP): requirements/dev.txt pyproject.toml
	@echo "venv: installing the locked dependencies into .venv"
	@test -x $(PY) || python3 -m venv .venv
	@.venv/bin/pip install --quiet --disable-pip-version-check --require-hashes --no-deps -r requirements/dev.txt
	@.venv/bin/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

lock: ## write requirements/*.txt from pyproject.toml
	@python3 -m venv .venv && .venv/bin/pip install --quiet uv
	@.venv/bin/uv pip compile $(if $(UPGRADE),--upgrade) --quiet --universal --python-version 3.11 --generate-hashes --no-header pyproject.toml -o requirements/runtime.txt
	@.venv/bin/uv pip compile $(if $(UPGRADE),--upgrade) --quiet --universal --python-version 3.11 --generate-hashes --no-header pyproject.toml --group dev -c requirements/runtime.txt -o requirements/dev.txt
	@.venv/bin/uv pip compile $(if $(UPGRADE),--upgrade) --quiet --universal --python-version 3.11 --generate-hashes --no-header --group clients -o requirements/clients.txt

check: venv ## format, lint, types, floors, generated files, sizes: seconds
	@.venv/bin/ruff format --check .
	@.venv/bin/ruff check .
	@.venv/bin/mypy
	@.venv/bin/lint-imports
	@$(PY) -m pytest -q tests/house

fix: venv ## let ruff format and mend what it can
	@.venv/bin/ruff format . && .venv/bin/ruff check --fix .

crds: venv ## write crds/ from the types in operator/moorage/api
	@$(PY) -m moorage.api.crd crds/
	@$(PY) -m charts.generate

chart: crds ## write the generated parts of charts/moorage: CRDs, rights, versions

cluster: venv ## build the one-machine Kubernetes into the cache (about ten minutes, once)
	@$(PY) -m e2e.cluster build

images: venv ## build the container images into the cache
	@$(PY) images/build.py

demo: venv ## the main job for real: cluster, chart, Models, one chat
	@$(PY) -m e2e.demo

demo-down: venv ## stop the demo's cluster and remove what it left
	@$(PY) -m e2e.demo --down

test: check cluster images ## everything that CI runs
	@$(PY) -m pytest -q tests $(PYTEST)
	@$(MAKE) --no-print-directory test-native

test-unit: venv ## pure tests: seconds
	@$(PY) -m pytest -q tests/house tests/unit $(PYTEST)

test-native: venv ## the gateway's tests once more, on the compiled data path that its image has
	@rm -rf build/native && mkdir -p build && cp -r operator build/native && $(PY) images/native.py build/native
	@$(PY) -m pytest -q -o pythonpath="build/native ." tests/process/gateway $(PYTEST)

test-api: cluster ## the operator and its parts against a real API server
	@$(PY) -m pytest -q tests/api $(PYTEST)

test-e2e: cluster images ## scenarios on the whole machine: real kubelet, real llama-server
	@$(PY) -m pytest -q tests/e2e $(PYTEST)

test-vllm: cluster images ## a real vLLM on the CPU, from apply to chat (the first time it builds its image, four minutes)
	@$(PY) -m pytest -q tests/vllm $(PYTEST)

bench: venv ## measure, beside the peers; writes benchmarks/results
	@for b in benchmarks/*.py; do name=$$(basename $$b .py); echo "bench: $$name"; $(PY) -m benchmarks.$$name || exit 1; done

clean: ## remove what was made here; the cache of builds stays
	@rm -rf .venv build .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis

.PHONY: docs
docs: crds ## write the generated pages of docs/reference
	@$(PY) docs/generate.py
