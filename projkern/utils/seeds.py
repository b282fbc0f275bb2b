"""Seeds of random streams that are named by a key and never coincide by accident."""

import hashlib


def seed_of(*key: object, bits: int = 56) -> int:
    """A seed in [0, 2^bits) that depends on the key alone, on every machine.

    Args:
        key: such as (seed, step); its parts are joined by spaces.
        bits: a multiple of 8. 32 for a generator of torch on the CPU, which uses no more.
    """
    digest = hashlib.blake2b(" ".join(map(str, key)).encode(), digest_size=bits // 8).digest()
    return int.from_bytes(digest, "big")
