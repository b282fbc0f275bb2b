"""Tasks as texts: how they are found, and the stream of windows over them."""

import json

import numpy as np
import pytest
import torch
from task_texts import NAMES, text_of, write_folder, write_lines

from projkern.data.corpora import TaskTexts, find_corpora, part_of
from projkern.utils.errors import InputError


def test_tasks_of_a_folder_and_of_lines(tmp_path):
    folder = find_corpora(write_folder(tmp_path / "tasks"))
    lines = find_corpora(write_lines(tmp_path / "tasks.jsonl"))
    assert [c.name for c in folder] == [c.name for c in lines] == list(NAMES)
    assert [len(c.files) for c in folder] == [1, 1, 2, 1]
    assert lines[2].texts == [text_of("red")]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('{"task": "a", "text": "b"}', "at least two"),
        ('{"task": "a"}', "line 1"),
        ("[1]", "line 1"),
        ("no JSON", "JSON lines"),
    ],
)
def test_lines_of_another_form(tmp_path, content, words):
    path = tmp_path / "tasks.jsonl"
    path.write_text(content)
    with pytest.raises(InputError, match=words):
        find_corpora(path)


def test_folders_that_are_no_tasks(tmp_path):
    with pytest.raises(InputError, match="not there"):
        find_corpora(tmp_path / "nowhere")
    (tmp_path / "a").mkdir()
    with pytest.raises(InputError, match="no file"):
        find_corpora(tmp_path)
    for name in ("b.txt", "b.txt.gz"):
        (tmp_path / name).write_text("x")
    (tmp_path / "a").rmdir()
    with pytest.raises(InputError, match="b twice"):
        find_corpora(tmp_path)


def stream(split="train", count=3, samples=2, seed=0, **changes):
    """Task i has the tokens 1000 i, 1000 i + 1, ...; its vectors are (i, sample)."""
    tokens = [1000 * i + np.arange(200) for i in range(count)]
    vectors = torch.tensor([[[i, s] for s in range(samples)] for i in range(count)], dtype=torch.float32)
    options = {"length": 8, "batch": 6, "examples_per_task": 2, "windows": 3, "vocabulary": 9000, **changes}
    return TaskTexts(tokens, vectors, split=split, seed=seed, **options)


def test_tasks_are_sorted_by_name(tmp_path):
    """And not by the name of the file, in which a space or a hyphen goes before a dot."""
    names = ["en", "en gb", "en-gb", "en.us"]
    for name in names:
        (tmp_path / f"{name}.txt").write_text("x")
    assert [corpus.name for corpus in find_corpora(tmp_path)] == names


@pytest.mark.parametrize("name", ["../a", "a/b", "", ".a"])
def test_names_that_no_folder_may_have(tmp_path, name):
    path = tmp_path / "tasks.jsonl"
    path.write_text("".join(json.dumps({"task": task, "text": "x"}) + "\n" for task in (name, "b")))
    with pytest.raises(InputError, match="names that a folder may have"):
        find_corpora(path)


def test_training_batches_hold_several_windows_of_few_tasks():
    data = stream()
    seen = set()
    for step in range(60):
        tokens, t = data.batch(step)
        tasks = tokens[:, 0] // 1000
        assert tokens.shape == (6, 8) and tokens.dtype == torch.int64
        assert torch.equal(tokens, tokens[:, :1] + torch.arange(8))  # a window of the text, in its order
        assert torch.equal(t[:, 0], tasks.float()) and torch.equal(data.tasks(step), t)
        assert torch.equal(data.labels(step), tasks)
        assert torch.equal(tasks, tasks[::2].repeat_interleave(2)) and len(tasks.unique()) == 3
        assert torch.equal(t[::2], t[1::2])  # one vector for all windows of a task
        assert (tokens % 1000 < 180).all()  # the last tenth is held out
        seen |= {tuple(row) for row in t.tolist()}
    assert len(seen) == 6


def test_a_batch_depends_on_seed_and_step_alone():
    batches = [stream(seed=seed).batch(step)[0] for seed, step in ((0, 5), (0, 5), (0, 6), (1, 5))]
    assert torch.equal(batches[0], batches[1])
    assert not torch.equal(batches[0], batches[2]) and not torch.equal(batches[0], batches[3])


def test_more_groups_than_tasks_repeat_tasks():
    tokens, _ = stream(batch=10).batch(0)
    assert len((tokens[:, 0] // 1000).unique()) == 3


def test_validation_is_balanced_over_the_held_out_part():
    data = stream("validation", batch=4, length=6)
    rows = torch.cat([data.batch(step)[0] for step in range(3)])[: data.count]
    assert data.count == 9 and (rows[:, 0] // 1000).tolist() == [0] * 3 + [1] * 3 + [2] * 3
    assert rows[:3, 0].tolist() == [180, 187, 194] and rows.max() == 2199
    assert stream("validation", windows=9).windows == 2  # of 20 tokens no more lie side by side
    assert torch.equal(data.batch(0)[1][:, 1], torch.zeros(4))  # the first vector of each
    others = data.with_other_tasks(0)
    assert torch.equal(others[0], data.batch(0)[0]) and others[1][:, 0].tolist() == [1, 1, 1, 2]


def test_parts_are_all_of_a_text():
    ids = np.arange(95)
    assert np.array_equal(np.concatenate([part_of(ids, "train"), part_of(ids, "validation")]), ids)
    assert len(part_of(ids, "validation")) == 9


def test_a_task_with_too_little_text_is_named():
    tokens, vectors = [np.arange(80), np.arange(79)], torch.zeros(2, 1, 1)
    options = {"batch": 2, "examples_per_task": 1, "windows": 2, "vocabulary": 99, "seed": 0, "split": "train"}
    with pytest.raises(InputError, match="at least 80 tokens each.* b has 79"):
        TaskTexts(tokens, vectors, length=8, names=["a", "b"], **options)
