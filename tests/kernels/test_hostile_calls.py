"""Hostile calls: the right answer, or an error that names an argument; never a crash or a wrong number."""

from __future__ import annotations

from collections import Counter

import hostile
import pytest

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.filterwarnings("ignore")]


def test_a_few_hundred_calls():
    outcomes = Counter(hostile.check(seed) for seed in range(300))
    assert outcomes["answer"] > 120 and sum(outcomes.values()) - outcomes["answer"] > 60, outcomes


@pytest.mark.slow
@pytest.mark.parametrize("start", [1000, 2000, 3000])
def test_a_thousand_calls(start):
    for seed in range(start, start + 1000):
        hostile.check(seed)
