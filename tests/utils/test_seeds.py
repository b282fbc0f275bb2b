"""Seeds, which every stored result depends on: their values never change."""

from __future__ import annotations

import hashlib

import pytest

from projkern.models.names import ModelName
from projkern.utils.seeds import seed_of


@pytest.mark.parametrize(
    ("key", "bits", "text"),
    [
        ((0, ModelName.parse("M_1")), 56, "0 M_1"),  # the initial weights of a stage
        ((7, ModelName.parse("P_1/4")), 56, "7 P_1/4"),
        ((3, 12), 32, "3 12"),  # an epoch of tokenised images, a step of a tokenizer
        ((11,), 32, "11"),  # SynthMNIST
        (("mixture", 0, "train", 5), 56, "mixture 0 train 5"),
    ],
)
def test_a_seed_is_blake2b_of_the_key_big_endian(key, bits, text):
    digest = hashlib.blake2b(text.encode(), digest_size=bits // 8).digest()
    assert seed_of(*key, bits=bits) == int.from_bytes(digest, "big") < 2**bits
    if bits == 56:
        assert seed_of(*key) == seed_of(*key, bits=bits)


def test_values():
    assert seed_of(0, "M_1") == 3213134750599640
    assert seed_of(0, "P_1/4") == 49385330092943167
    assert seed_of(0, 1, bits=32) == 442762807


def test_other_keys_have_other_seeds():
    keys = [(seed, step) for seed in range(50) for step in range(50)]
    assert len({seed_of(*key) for key in keys}) == len(keys)
    assert seed_of(1, 23) != seed_of(12, 3)
