"""The fast tier: which tests `make fast` leaves out. They get the marker ``thorough``; a plain pytest runs all.

The fast tier takes under 60 s on two cores. ``pytest --durations=30 -m 'not slow and not thorough'`` shows what to move.
"""

from __future__ import annotations

import pytest

THOROUGH_BACKENDS = {"triton", "cuda"}
"""Without a card one is interpreted, and the other built for the host first (about a minute)."""

THOROUGH = (
    "tests/benchmarks",
    "tests/evaluation",
    "tests/experiments",
    "tests/exploration",
    "tests/export",
    "tests/kernels/test_cuda_compiles.py",
    "tests/kernels/test_cuda_on_host.py",
    "tests/kernels/test_triton.py",
    "tests/models/test_huggingface.py",
    "tests/models/test_models.py::test_each_example_runs_the_model_of_its_own_task",
    "tests/models/test_tangent.py",
    "tests/test_docs.py::test_a_page_runs_from_top_to_bottom",
    "tests/test_docs.py::test_documentation_agrees_with_the_stored_results",
    "tests/test_docs.py::test_notebook_runs",
    "tests/tokenization",
    "tests/training/test_settings.py",
    "tests/training/test_source.py",
    "tests/training/test_token_runs.py",
    "tests/training/test_trained.py",
    "tests/training/test_training.py",
)
"""Folders, files and tests that train runs, start processes or take seconds each."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        backend = item.callspec.params.get("backend") if hasattr(item, "callspec") else None
        if backend in THOROUGH_BACKENDS or item.nodeid.startswith(THOROUGH):
            item.add_marker("thorough")
