"""A little folder of tokenised images, without the training of a tokenizer."""

import torch

from projkern.data import VQVAE
from projkern.data.tokens import FORMAT, TOKENIZER, write_split


def write_tokens(folder, *, vocabulary=16, grid=4, task_dim=3, train=12, validation=9, seed=0):
    """Random tokens, and a tokenizer whose codes are random too."""
    folder.mkdir(parents=True)
    torch.manual_seed(seed)
    tokenizer = VQVAE(vocabulary)
    tokenizer.codebook.vectors.normal_()
    tokenizer.save(folder / TOKENIZER)
    counts = {"train": train, "validation": validation}
    for split, n in counts.items():
        tokens = torch.randint(vocabulary, (n, grid**2)).to(torch.int32)
        write_split(folder, split, tokens, 3 * torch.randn(n, task_dim), torch.arange(n) % 4)
    shape = {"image_size": 2 * grid, "grid": grid, "vocabulary": vocabulary, "task_dim": task_dim}
    FORMAT.write(folder / "config.json", shape | {"counts": counts, "skipped": {}, "settings": {}})
    return folder
