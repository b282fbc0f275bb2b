"""The fast tier: which tests `make fast` leaves out. They get the marker ``thorough``; a plain pytest runs all.

The fast tier takes under 60 s on two cores; ``make fast PYTEST_ADDOPTS=--durations=30`` shows which tests to move here.
"""

from __future__ import annotations

import pytest

THOROUGH_PARAMETERS = {"triton", "cuda", "projected"}
"""Backends and a form that without a card are interpreted, or built for the host first (about a minute)."""

THOROUGH = (
    "tests/benchmarks",
    "tests/compression/test_compress.py",
    "tests/compression/test_ranks.py::test_a_stopped",
    "tests/compression/test_stories.py",
    "tests/evaluation",
    "tests/experiments",
    "tests/exploration",
    "tests/export",
    "tests/kernels/test_cuda_compiles.py",
    "tests/kernels/test_cuda_on_host.py",
    "tests/kernels/test_instruction_sets.py::test_each",
    "tests/kernels/test_instruction_sets.py::test_no_function",
    "tests/kernels/test_linear.py::test_compiles",
    "tests/kernels/test_linear.py::test_opcheck",
    "tests/kernels/test_linear.py::test_triton_is_optional",
    "tests/kernels/test_projection.py::test_compiles",
    "tests/kernels/test_projection.py::test_gradgradcheck",
    "tests/kernels/test_projection.py::test_opcheck",
    "tests/kernels/test_projection.py::test_results_larger_than_the_caches",
    "tests/kernels/test_triton.py",
    "tests/language",
    "tests/kernels/test_transforms.py::test_one_tensor",
    "tests/models/test_huggingface.py",
    "tests/models/test_sampling.py::test_samples_of",
    "tests/models/test_transforms.py",
    "tests/test_build.py",
    "tests/test_docs.py::test_a_page_runs_from_top_to_bottom",
    "tests/test_docs.py::test_documentation_agrees_with_the_stored_results",
    "tests/test_docs.py::test_notebooks_run",
    "tests/test_hostile.py",
    "tests/tokenization",
    "tests/training/test_distributed.py",
    "tests/training/test_inputs.py",
    "tests/training/test_legacy_runs.py",
    "tests/training/test_settings.py",
    "tests/training/test_shard.py",
    "tests/training/test_source.py",
    "tests/training/test_token_runs.py",
    "tests/training/test_torchrun.py",
    "tests/training/test_trained.py",
    "tests/training/test_training.py",
    "tests/utils/test_command.py::test_sigterm_ends_a_process_that_ignores_sigint",
    "tests/utils/test_files.py::test_one_process_at_a_time",
    "tests/utils/test_lazy.py",
)
"""Folders, files and tests, by the start of their names, that train runs, start processes or compile."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        parameters = item.callspec.params.values() if hasattr(item, "callspec") else ()
        named = any(isinstance(value, str) and value in THOROUGH_PARAMETERS for value in parameters)
        if named or item.nodeid.startswith(THOROUGH):
            item.add_marker("thorough")
        if named or "test_triton" in item.nodeid:
            item.add_marker("no_cover")  # Triton's interpreter takes several times as long under a tracer
