"""The benchmarks measure what they promise, store it, show it, and say no where they should."""

from __future__ import annotations

import copy
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import matplotlib.image
import pytest
import torch

import projkern as pk
from benchmarks import compare, gate, machine, measure, one_shot, plot, predict, providers, render, roofline, tables
from benchmarks.case import Case, truth
from benchmarks.roofline import Cell

PLAIN = [name + form for name in providers.BASELINES for form in ("", ", stacked")]

ROOT = Path(__file__).parents[2]
STORED = ROOT / "benchmarks" / "results" / "cpu_projection.json"
TINY = ["--layers", "1", "--width", "64", "--batches", "2", "--no-compile", "--rounds", "2"]

pytestmark = [
    pytest.mark.usefixtures("one_thread", "small_limits"),
    pytest.mark.skipif("cpu" not in pk.available_backends(), reason="the compiled kernels are not here"),
]


@pytest.fixture(scope="module")
def small_limits():
    """Not to copy a gigabyte in each test."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(machine.Machine, "copy_numbers", 1 << 16)
        patch.setattr(machine.Machine, "matrix", 64)
        yield


@pytest.fixture(scope="module")
def result(tmp_path_factory, small_limits):
    """A tiny run, end to end: its file, and what is in it."""
    path = tmp_path_factory.mktemp("compare") / "tiny.json"
    assert compare.main([str(path), *TINY, "--groups", "2", "4"]) == 0
    return path, json.loads(path.read_text())


def fresh(result):
    return copy.deepcopy(result[1])


# What is measured, and how


def only_left_out(failed):
    """Nothing failed: the forms that were not measured are far from the best, or stacks of such."""
    return all("times the best" in why or why.endswith(" was not") for why in failed.values())


def test_a_run_stores_what_it_promises(result):
    stored = result[1]
    assert stored["protocol"] == compare.PROTOCOL and stored["machine"]["torch"] == torch.__version__
    assert [(c["batch"], c["group"], c["weights"], c["outputs"]) for c in stored["cells"]] == [
        (2, 2, "float32", "float32"),
        (2, 4, "float32", "float32"),
    ]
    for cell in stored["cells"]:
        assert cell["fused"] == ["cpu"] and cell["red"] == []
        assert only_left_out(cell["failed"])
        assert set(cell["seconds"]) | set(cell["failed"]) == {"cpu", *PLAIN}
        assert {part: len(samples) for part, samples in cell["seconds"]["cpu"].items()} == {
            "forward": 6,
            "backward": 6,
            "both": 6,
        }
        for name in set(cell["seconds"]) - {"cpu"}:
            assert set(cell["seconds"][name]) == {"forward", "both"}
            assert 0 < len(cell["seconds"][name]["both"]) <= 2
        assert all(error < 1e-5 for error in cell["relative_errors"].values())
        assert len(cell["copy_bytes_per_second"]) == len(cell["gemm_flops_per_second"]) == 6


def test_a_run_goes_on_where_it_was_stopped(result, tmp_path, capsys):
    path = tmp_path / "partial.json"
    first = fresh(result)
    first["cells"] = first["cells"][:1]
    compare.write_result(path, first)
    assert compare.main([str(path), *TINY, "--groups", "2", "4"]) == 0
    cells = json.loads(path.read_text())["cells"]
    assert cells[0] == first["cells"][0] and [c["group"] for c in cells] == [2, 4]
    assert "| 2 | 4 |" in capsys.readouterr().out


def test_a_run_does_not_go_on_from_another_machine(result, tmp_path):
    other = fresh(result)
    other["machine"]["cpu"] = "another"
    compare.write_result(tmp_path / "other.json", other)
    with pytest.raises(SystemExit):
        compare.main([str(tmp_path / "other.json"), *TINY])


def test_no_card_is_said_politely(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for command in (compare, one_shot):
        with pytest.raises(SystemExit):
            command.main([str(tmp_path / "never.json"), "--device", "cuda"])
        assert "torch sees no CUDA card" in capsys.readouterr().err


def test_time_that_is_over_ends_the_run_between_cells(tmp_path, capsys):
    path = tmp_path / "short.json"
    assert compare.main([str(path), *TINY, "--groups", "2", "4", "--seconds", "0"]) == 0
    assert not path.exists() and "goes on from here" in capsys.readouterr().err


def test_a_wrong_kernel_is_red_and_not_timed(tmp_path, monkeypatch, capsys):
    right = pk.project_layers
    monkeypatch.setattr(pk, "project_layers", lambda *a, **k: [1.001 * out for out in right(*a, **k)])
    path = tmp_path / "red.json"
    assert compare.main([str(path), *TINY, "--groups", "2"]) == 1
    (cell,) = json.loads(path.read_text())["cells"]
    assert cell["red"] == ["cpu"] and "cpu" not in cell["seconds"] and "bmm by hand" in cell["seconds"]
    assert "RED: cpu at B = 2, g = 2: WRONG: the relative error of W_s is 1.0e-03" in capsys.readouterr().err


def test_a_kernel_that_forgets_to_write_is_red(monkeypatch):
    """Even where the memory it leaves alone still holds an earlier, right result."""
    first = {}

    def stale(weights, p, q, group, dtype=None):
        if not first:
            first["outputs"] = [out.detach() for out in right(weights, p, q, group, dtype=dtype)]
        zero = 0 * (p.sum() + q.sum() + sum(w.sum() for w in weights))
        return [out + zero for out in first["outputs"]]

    right = pk.project_layers
    monkeypatch.setattr(pk, "project_layers", stale)
    found = measure.measure(Cell(1, 32, 2, 2), machine.Machine(), measure.Settings(1, compiled=False), ["cpu"])
    assert found["red"] == ["cpu"]


def test_a_kernel_of_another_name_is_red(monkeypatch):
    monkeypatch.setattr(providers, "BACKENDS", {"cpu": ("reference", "cpu")})
    found = measure.measure(Cell(1, 32, 2, 2), machine.Machine(), measure.Settings(1, compiled=False), ["reference"])
    assert found["red"] == [] and found["fused"] == ["reference"]
    impostor = pk.use_backend
    monkeypatch.setattr(pk, "use_backend", lambda name: impostor("cpu"))
    found = measure.measure(Cell(1, 32, 2, 2), machine.Machine(), measure.Settings(1, compiled=False), ["reference"])
    assert found["failed"]["reference"] == "WRONG: it was served by cpu"


def test_what_cannot_be_measured_is_recorded(monkeypatch):
    def greedy(W, p, q, g):
        raise torch.OutOfMemoryError("not that much")

    monkeypatch.setitem(providers.BASELINES, "bmm by hand", greedy)
    settings = measure.Settings(1, compiled=False, slow=0.0)
    found = measure.measure(Cell(1, 32, 2, 2), machine.Machine(), settings, ["cpu"])
    assert found["failed"]["bmm by hand"] == "out of memory"
    assert found["failed"]["bmm by hand, stacked"] == "not measured: bmm by hand was not"
    assert found["failed"]["einsum"].startswith("not measured: one layer suggests")
    assert tables.row(found, "cpu")["both"]["of_limit"] > 0
    monkeypatch.setattr(machine.Machine, "free_bytes", lambda self: 1e9)
    skipped = measure.measure(Cell(1, 32, 2, 2), machine.Machine(), settings, ["cpu"])
    assert skipped["skipped"] == "needs 4 GB, of which 1 GB are free"
    both = {"machine": {}, "cells": [found, skipped]}
    assert "none could be measured" in tables.table(both) and "needs 4 GB" in tables.table(both)


class PretendedCard(machine.Card):
    """A card made of a CPU: the orders are a card's, and who carries them out does not matter here."""

    device = torch.device("cpu")
    repeats, rates, copy_numbers, matrix = 2, (torch.float32, torch.bfloat16), 1 << 16, 64

    def __init__(self):
        self.cache_bytes = 3 * 50_000
        self.graphs = []

    def describe(self):
        gpu = {"name": "Pretended", "multiprocessors": 1, "memory_bytes": 1, "driver": "1", "cuda": "1", "triton": "1"}
        return machine.Machine.describe(self) | {"gpu": gpu}

    time, wait, clear, free_bytes = (getattr(machine.Machine, name) for name in ("time", "wait", "clear", "free_bytes"))

    def peak_bytes(self, run):
        return 60_000, run()

    def graph(self, run, pool):
        assert pool == "pool"
        self.graphs.append(PretendedGraph(run))
        return self.graphs[-1]

    def graph_pool(self):
        return "pool"


class PretendedGraph:
    def __init__(self, run):
        self.run, self.released = run, False

    def __call__(self):
        return self.run()

    def release(self):
        self.released = True


def test_a_cards_orders(tmp_path):
    """Inputs in rotation, graphs, a warm-up at each turn, bfloat16 results, both limits; and all of it is shown."""
    card = PretendedCard()
    cell = Cell(1, 64, 2, 2, "float32", "bfloat16")
    found = measure.measure(cell, card, measure.Settings(2, compiled=False), ["cpu"])
    assert found["red"] == [] and only_left_out(found["failed"])
    assert found["input_sets"] == 1 and found["fused"] == ["cpu", "cpu, graph"]
    assert all(graph.released for graph in card.graphs) and len(card.graphs) == 2
    assert len(found["seconds"]["cpu"]["both"]) == 2 * 3 * 2
    # A baseline that a busy machine held up in the first round may be left out of the second; the best one is not.
    measured = set(PLAIN) & set(found["seconds"])
    assert max(len(found["seconds"][name]["both"]) for name in measured) == 2 * 2
    assert set(found["seconds"]["cpu, graph"]) == {"forward", "both"}
    assert set(found["host_seconds"]) == set(found["seconds"])
    assert len(found["bfloat16_gemm_flops_per_second"]) == 6
    # W_s of 2 x 12,288 and dW of 49,152 numbers, dp and dq of 2 x 1024.
    assert set(found["peak_bytes"]) == {"cpu", *measured}
    assert tables.row(found, "cpu")["extra_memory"] == 60_000 / (2 * 24_576 + 4 * 49_152 + 4 * 2048) - 1
    small = measure.measure(Cell(1, 32, 2, 2, "bfloat16", "bfloat16"), card, measure.Settings(1, False), ["cpu"])
    assert small["input_sets"] == 5 and small["red"] == [] and only_left_out(small["failed"])

    wide = cell.to_json() | {"width": 4096, "skipped": "needs 500 GB, of which 140 GB are free"}
    result = {"protocol": 2, "machine": card.describe(), "cells": [found, small, wide]}
    shown = tables.table(result)
    assert "**cpu**: 1 layers of d = 64, W in float32, W_s in bfloat16" in shown
    assert "**cpu**: 1 layers of d = 32, W in bfloat16, W_s in bfloat16" in shown
    assert "layers of d = 4,096" in shown and "needs 500 GB" in shown and "forward alone, ratio" in shown
    assert "The limit is the longer of" in shown and "(bfloat16 product:" in shown
    assert run_gate(tmp_path, result, result) == 0
    plot.plot(result, tmp_path / "card.png")
    (tmp_path / "card").mkdir()
    compare.write_result(tmp_path / "card" / "projection.json", result)
    assert "Pretended, driver 1, CUDA 1" in render.gpu_projection(tmp_path)


def test_truth_is_the_definition_whatever_the_bands():
    case = Case(Cell(1, 16, 3, 4), "cpu")
    W, p, q, G = case.matrices[0]
    leaves = [x.detach().double().requires_grad_() for x in (W, p, q)]
    with pk.use_backend("reference"):
        out = pk.project(*leaves, 4)
    expected = (out, *torch.autograd.grad(out, leaves, G.double()))
    for most in (1, 500, 1 << 26):
        for found, exact in zip(truth((W, p, q, G), 4, most), expected):
            torch.testing.assert_close(found.double(), exact, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("stacked", [False, True])
@pytest.mark.parametrize("name", providers.BASELINES)
def test_baselines_compute_in_the_weights_type(name, stacked):
    case = Case(Cell(2, 32, 2, 4, "bfloat16", "bfloat16"), "cpu")
    provider = providers.baseline(name, stacked)
    results = provider.per_matrix(case, provider.both(case))
    assert len(results) == len(case.matrices) == 8
    for (out, dW, dp, dq), matrix in zip(results, case.matrices):
        assert (out.dtype, dW.dtype, dp.dtype, dq.dtype) == (torch.bfloat16,) * 2 + (torch.float32,) * 2
        for found, exact in zip((out, dW, dp, dq), truth(matrix, 4)):
            assert measure.relative_error(found, exact) < 2e-2


def test_one_shot(tmp_path):
    path = tmp_path / "one_shot.json"
    assert one_shot.main([str(path), "--layers", "1", "--width", "64", "--rounds", "2"]) == 0
    found = json.loads(path.read_text())["backends"]["cpu"]
    assert found["relative_error"] < 4e-3
    assert {name: len(s["ready"]) for name, s in found["seconds"].items()} == {"project": 2, "generate": 2, "model": 2}


# The model of bytes and multiply-adds


def test_predictions_are_those_of_a_calculation_by_hand():
    """|W| = 75.5 million in float32, W_s in bfloat16, B = 32, 4.3 TB/s."""
    found = {g: predict.predict(Cell(24, 512, 32, g, "float32", "bfloat16")) for g in (2, 8)}
    assert found[2]["forward"] == (pytest.approx(0.35e-3, abs=0.005e-3), "memory")
    assert found[8]["forward"] == (pytest.approx(0.09e-3, abs=0.005e-3), "memory")
    assert found[2]["backward"] == (pytest.approx(0.42e-3, abs=0.005e-3), "memory")
    # 3.25 B |W| multiply-adds at 67 TFLOP/s, above the 0.16 ms that the bytes take.
    assert found[8]["backward"] == (pytest.approx(0.234e-3, abs=0.001e-3), "arithmetic")
    cell = Cell(24, 512, 32, 8, "float32", "bfloat16")
    assert cell.bytes("backward") / 4.3e12 == pytest.approx(0.16e-3, abs=0.005e-3)
    assert cell.size == 75_497_472
    assert predict.TITLE in predict.table() and "0.351" in predict.table()


def test_bytes_and_multiply_adds_are_those_of_the_tensors():
    cell = Cell(2, 32, 3, 4, "float32", "bfloat16")
    case = Case(cell)
    W, results = (sum(x.nbytes for x in tensors) for tensors in (case.weights, case.grads))
    assert (cell.bytes("forward"), cell.bytes("backward")) == (W + results, 2 * W + results)
    rows = columns = 0
    for W, p, _, G in case.matrices:
        N, M = W.shape
        rows += len(p) * N * M  # of T
        columns += len(p) * G.shape[1] * M
    assert cell.multiply_adds("forward") == rows + columns
    assert cell.multiply_adds("backward") == 3 * rows + 2 * columns  # T, dW and dp; U and dq


def test_the_most_telling_cells_come_first():
    cells = roofline.standard("cuda")
    assert [(c.width, c.batch, c.group) for c in cells[:6]] == [(512, b, g) for b in (32, 8) for g in (2, 4, 8)]
    assert len(set(cells)) == len(cells) == 48
    assert {c.weights for c in cells} == {"float32", "bfloat16"} and {c.outputs for c in cells} == {"bfloat16"}


# The gate


def run_gate(tmp_path, old, new, *flags):
    for name, value in (("old", old), ("new", new)):
        (tmp_path / f"{name}.json").write_text(json.dumps(value))
    return gate.main([str(tmp_path / "old.json"), str(tmp_path / "new.json"), *flags])


def steady(result, slower=1.0):
    """The result with its samples replaced by ones of 1 % spread."""
    copied = fresh(result)
    for cell in copied["cells"]:
        for name, parts in cell["seconds"].items():
            for part in parts:
                middle = 1.0 if name != "cpu" else 0.1 * slower
                parts[part] = [middle * x for x in (0.99, 0.995, 1.0, 1.005, 1.01)]
        for rate in ("copy_bytes_per_second", "gemm_flops_per_second"):
            cell[rate] = [1e9 * x for x in (0.99, 1.0, 1.01)]
    return copied


def test_gate_passes_on_equal_results(result, tmp_path, capsys):
    assert run_gate(tmp_path, result[1], result[1]) == 0
    assert "0 worse, 0 better" in capsys.readouterr().out
    old = json.loads(STORED.read_text())
    assert run_gate(tmp_path, old, old) == 0


def test_gate_fails_where_a_ratio_fell_by_more_than_the_noise(result, tmp_path, capsys):
    old = steady(result)
    assert run_gate(tmp_path, old, steady(result, slower=1.02)) == 0
    assert run_gate(tmp_path, old, steady(result, slower=1.2)) == 1
    shown = capsys.readouterr().out
    assert "WORSE" in shown and "forward, of limit" in shown and "both, ratio to the best in torch" in shown
    assert run_gate(tmp_path, old, steady(result, slower=0.8)) == 0
    noisy = steady(result, slower=1.2)
    for cell in noisy["cells"]:
        cell["seconds"]["cpu"] = {part: [0.06, 0.08, 0.12, 0.2, 0.3] for part in cell["seconds"]["cpu"]}
    assert run_gate(tmp_path, old, noisy) == 0


def test_gate_does_not_compare_what_is_not_comparable(result, tmp_path, capsys):
    other = fresh(result)
    other["machine"]["cpu"] = "another"
    assert run_gate(tmp_path, result[1], other) == 2
    assert "different machines" in capsys.readouterr().err
    assert run_gate(tmp_path, result[1], fresh(result) | {"protocol": 1}) == 2
    assert run_gate(tmp_path, result[1], fresh(result) | {"cells": []}) == 2


def test_gate_misses_cells(result, tmp_path, capsys):
    fewer = fresh(result)
    fewer["cells"] = fewer["cells"][:1]
    assert run_gate(tmp_path, result[1], fewer) == 1
    assert "missing: 1 layers, d = 64" in capsys.readouterr().out
    assert run_gate(tmp_path, result[1], fewer, "--partial") == 0


# What is shown


def test_plot(tmp_path):
    plot.plot(json.loads(STORED.read_text()), tmp_path / "out.png")
    height, width = matplotlib.image.imread(tmp_path / "out.png").shape[:2]
    assert width > 1000 and height > 500
    with pytest.raises(ValueError, match="no cell"):
        plot.plot({"machine": {}, "cells": []}, tmp_path / "none.png")


def test_pages_may_have_places_for_cards(tmp_path, monkeypatch):
    (tmp_path / "page.md").write_text(
        "a\n<!-- gpu projection -->\n<!-- end of gpu projection -->\n<!-- prediction -->x<!-- end of prediction -->\n"
    )
    monkeypatch.setattr(render, "ROOT", tmp_path)
    monkeypatch.setattr(render, "PARTS", {"page.md": {}})
    monkeypatch.setitem(render.ANYWHERE, "gpu projection", lambda: render.gpu_projection(tmp_path))
    page = render.render("page.md")
    assert render.NOT_YET in page and predict.TITLE in page and "gpu step" not in page
    (tmp_path / "page.md").write_text("<!-- prediction -->")
    with pytest.raises(ValueError, match="one place for 'prediction'"):
        render.render("page.md")


def test_documentation_is_rendered():
    finished = subprocess.run(
        [sys.executable, "-m", "benchmarks.render", "--check"], cwd=ROOT, capture_output=True, text=True
    )
    assert finished.returncode == 0, finished.stderr


# The one command for a machine with a card


def test_gpu_script_is_a_script():
    assert subprocess.run(["bash", "-n", "benchmarks/gpu.sh"], cwd=ROOT).returncode == 0
    assert os.access(ROOT / "benchmarks" / "gpu.sh", os.X_OK)
    if shutil.which("shellcheck"):
        finished = subprocess.run(["shellcheck", "benchmarks/gpu.sh"], cwd=ROOT, capture_output=True, text=True)
        assert finished.returncode == 0, finished.stdout


def test_gpu_script_refuses_politely_without_a_card(tmp_path):
    environment = os.environ | {"PYTHON": sys.executable, "OUT": str(tmp_path / "out"), "CUDA_VISIBLE_DEVICES": ""}
    finished = subprocess.run(
        ["bash", "benchmarks/gpu.sh"], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=100
    )
    assert finished.returncode == 2 and "torch sees no CUDA card here" in finished.stderr
    assert not (tmp_path / "out").exists()
