"""The rank that brings a generator nearest to a number of parameters."""

import pytest

import projkern as pk
from experiments.equal_parameters import count_parameters, rank_for
from projkern.utils.errors import InputError


def test_rank_for_equal_parameters():
    config = pk.GPTConfig(64, 256, 128, 4, 8)
    assert rank_for("diagonal", 76_160, config, 1 / 4, 18) == 8
    assert rank_for("linear", 955_776, config, 1 / 4, 18) == 1
    cases = [("blocks", {}), ("low-rank", {}), ("low-rank", {"delta_rank": 2}), ("diagonal", {"tied": True})]
    for kind, options in cases:
        rank = rank_for(kind, 76_160, config, 1 / 4, 18, **options)
        off = [abs(count_parameters(kind, config, 1 / 4, 18, rank + k, **options) - 76_160) for k in (-1, 0, 1)]
        assert min(off) == off[1]
    for kind in ("modular", "linear"):
        with pytest.raises(InputError, match=f"^parameters .*'{kind}'.* 76,160"):
            rank_for(kind, 76_160, config, 1 / 4, 18)
