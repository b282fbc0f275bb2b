# The tools of a checkout; .ci/run runs all of them. PYTHON=/path/to/python takes another environment than .venv.
PYTHON ?= $(if $(wildcard .venv/bin/python),.venv/bin/python,python3)
RUFF = $(PYTHON) -m ruff
CLANG_FORMAT = git ls-files 'csrc/*' 'tests/helpers/cuda_on_host/*' | grep -E '\.(h|cpp|cu|cuh)$$' \
	| xargs $(or $(wildcard $(dir $(PYTHON))clang-format),clang-format)

.PHONY: fast test lint format docs bench

fast:  ## the fast tier of the tests, before each commit (small tensors: threads only cost time)
	OMP_NUM_THREADS=1 $(PYTHON) -m pytest -q -m 'not slow and not thorough'

test:  ## all tests
	$(PYTHON) -m pytest

lint:  ## style and types; changes nothing
	$(RUFF) check .
	$(RUFF) format --check .
	$(CLANG_FORMAT) --dry-run -Werror
	$(PYTHON) -m mypy

format:  ## rewrite as the tools want it
	$(RUFF) check --fix .
	$(RUFF) format .
	$(CLANG_FORMAT) -i

docs:  ## the site, in site/; warnings are errors
	NO_MKDOCS_2_WARNING=1 $(PYTHON) -m mkdocs build --strict

bench:  ## the projection on this CPU, beside torch
	$(PYTHON) -m benchmarks.compare bench.json
