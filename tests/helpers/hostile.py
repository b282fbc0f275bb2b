"""Random calls of the kernels with whatever a user may pass, and what each must come to: an answer or an error."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

import projkern as pk

F32, BF16, F16, F64 = torch.float32, torch.bfloat16, torch.float16, torch.float64
WIDE = {F32: 1e-5, BF16: 1e-2, F16: 2e-3, F64: 1e-12}
NAMES = {
    "project": ("weight", "p", "q", "group", "dtype"),
    "project_layers": ("weights", "p", "q", "group", "dtype"),
    "project_linear": ("x", "weight", "p", "q", "group", "form"),
}
"""The arguments of each function, one of which every error must name."""
ODD: tuple[Any, ...] = (
    *(None, True, "4", 3.5, math.nan, math.inf, -1, 0, 2**70, 1j, b"", [], {}, (), (1, 2, 3), [[1.0]], object(), int),
    *(np.ones((4, 4)), np.float32(1), np.int64(2), range(3), torch.Size([2]), torch.tensor(2), torch.float32),
)
"""Values of other types than those asked for."""


class Generator:
    """Draws calls; all that it draws follows from the seed."""

    def __init__(self, seed: int) -> None:
        self.torch = torch.Generator().manual_seed(seed)

    def pick(self, *choices: Any) -> Any:
        return choices[int(torch.randint(len(choices), (1,), generator=self.torch))]

    def chance(self, one_in: int) -> bool:
        return self.pick(*range(one_in)) == 0

    def tensor(self, *shape: int, dtype: torch.dtype = F32) -> Tensor:
        """Of any layout; a few with NaN, infinities, subnormal or huge numbers."""
        layout = self.pick("plain", "sliced", "stepped", "transposed", "expanded", "offset", "flipped")

        def normal(*size: int) -> Tensor:
            return torch.randn(size, generator=self.torch).to(dtype)

        if layout == "sliced":
            tensor = normal(*shape[:-1], shape[-1] + 3)[..., 2:-1]
        elif layout == "stepped":
            tensor = normal(*shape[:-1], 2 * shape[-1])[..., ::2]
        elif layout == "transposed" and len(shape) > 1:
            tensor = normal(*shape[:-2], shape[-1], shape[-2]).mT
        elif layout == "expanded" and shape[0] > 0:
            tensor = normal(1, *shape[1:]).expand(shape)
        elif layout == "offset":
            tensor = normal(math.prod(shape) + 7)[7:].view(shape)
        else:
            tensor = normal(*shape)
        if layout == "flipped":
            tensor = torch.flip(tensor, (-1,))
        if tensor.numel() and self.chance(12):
            tensor = tensor.clone(memory_format=torch.contiguous_format)
            index = int(torch.randint(tensor.numel(), (1,), generator=self.torch))
            tensor.view(-1)[index] = self.pick(math.nan, math.inf, -math.inf, 1e-40, 0.0, torch.finfo(dtype).max)
        return tensor

    def spoiled(self, value: Any) -> Any:
        """Something like an argument that is wrong, or right in an unusual way."""
        if not isinstance(value, Tensor) or self.chance(3):
            return self.pick(*ODD)
        spoil = self.pick(
            lambda t: t.to(self.pick(torch.int64, torch.bool, torch.complex64, F16, BF16, F64, torch.float8_e4m3fn)),
            lambda t: t[..., :-1],
            lambda t: t[:0],
            lambda t: t[None],
            lambda t: t.reshape(-1),
            lambda t: t.sum(),
            lambda t: t.to("meta"),
            lambda t: t.to_sparse(),
            lambda t: t.requires_grad_(t.is_leaf),
            lambda t: torch.nn.Parameter(t.contiguous()),
            lambda t: t.numpy(force=True) if t.dtype != BF16 else None,
            lambda t: t.tolist(),
            lambda t: torch.cat([t, t]),
        )
        return spoil(value.detach())

    def call(self) -> tuple[str, list[Any], dict[str, Any]]:
        """The name of a function, its arguments and its options."""
        function = self.pick(*NAMES)
        rows, cols = self.pick(1, 2, 3, 4, 5, 8, 16, 17), self.pick(1, 2, 3, 4, 7, 8, 16, 33)
        n, m, batch = self.pick(0, 1, 2, 3, 5, 17), self.pick(0, 1, 2, 4, 9, 16), self.pick(0, 1, 2, 3, 7)
        group = (rows, cols) if rows != cols or self.chance(2) else rows
        if self.chance(4):
            group = tuple(map(np.int64, group)) if isinstance(group, tuple) else np.int32(group)
        N, M = n * rows, m * cols
        dtype = self.pick(F32, F32, F32, BF16, F16, F64)
        factor = F64 if dtype == F64 else F32
        weight, p, q = self.tensor(N, M, dtype=dtype), self.tensor(batch, N, dtype=factor), None
        q = p if N == M and self.chance(4) else self.tensor(batch, M, dtype=factor)
        options: dict[str, Any] = {}
        arguments: list[Any] = [weight, p, q, group]
        if function == "project_layers":
            arguments[0] = [weight, weight] if self.chance(2) else (weight,)
            arguments[1:3] = [torch.cat([x] * len(arguments[0]), 1) for x in (p, q)]
        if function == "project_linear":
            kind = F64 if dtype == F64 else self.pick(F32, BF16, F16)
            arguments.insert(0, self.tensor(batch, self.pick(0, 1, 3), m, dtype=kind))
            options = self.pick({}, {"form": "materialised"}, {"form": "factored"})
        elif self.chance(4) and dtype != F64:
            options = {"dtype": self.pick(F32, BF16, F16)}
        if self.chance(2):
            k = self.pick(*range(len(arguments) + len(options)))
            if k < len(arguments):
                arguments[k] = self.spoiled(arguments[k])
            else:
                options = {name: self.pick(*ODD) for name in options}
        return function, arguments, options


def project(weight: Tensor, p: Tensor, q: Tensor, row_group: int, col_group: int) -> Tensor:
    """The definition, product by product, so that NaN and infinities stay in the sums that they belong to."""
    products = p.double()[..., :, None] * weight.double() * q.double()[..., None, :]
    return products.unflatten(-1, (-1, col_group)).sum(-1).unflatten(-2, (-1, row_group)).sum(-2)


def expected(function: str, arguments: list[Any]) -> list[Tensor]:
    """The results in float64."""
    *front, group = arguments
    pair = tuple(map(int, group)) if isinstance(group, tuple) else (int(group),) * 2
    if function == "project_linear":
        x, weight, p, q = front
        return [x.double() @ project(weight, p, q, *pair).mT]
    weights = [front[0]] if function == "project" else list(front[0])
    matrices = [matrix for w in weights for matrix in (w if w.dim() == 3 else w[None])]
    rows, cols = (t.split([w.shape[k] for w in matrices], -1) for k, t in zip((0, 1), front[1:]))
    return [project(w, a, b, *pair) for w, a, b in zip(matrices, rows, cols)]


def close(value: Tensor, truth: Tensor, tolerance: float) -> bool:
    """Equal up to rounding in the scale of the largest number; NaN and infinities, of whichever kind, where truth has.

    Where numbers beyond float16's range or near the end of float32's are due, infinities may stand instead.
    """
    assert value.shape == truth.shape, (value.shape, truth.shape)
    value, finite = value.detach().double(), truth.isfinite()
    if (value.isfinite() & ~finite).any():
        return False
    value, truth = value[finite], truth[finite]
    scale = truth.abs().max().item() if truth.numel() else 0.0
    overflowed = ~value.isfinite()
    if scale < 1e30 and (overflowed & (truth.abs() < 6e4)).any():
        return False
    return bool((overflowed | ((value - truth).abs() <= tolerance * max(scale, 1e-30))).all())


def check(seed: int) -> str:
    """Make the call of a seed; returns what came of it: "answer", or the type of the error."""
    function, arguments, options = Generator(seed).call()
    about = f"seed {seed}: {function}({', '.join(map(repr, map(shown, arguments)))}, {options})"
    try:
        result = getattr(pk, function)(*arguments, **options)
    except (TypeError, ValueError) as error:
        assert any(name in str(error) for name in NAMES[function]), f"{about}: names no argument: {error!r}"
        return type(error).__name__
    except Exception as error:
        raise AssertionError(f"{about}: {error!r}") from error
    results = result if isinstance(result, list) else [result]
    if any(r.device.type == "meta" for r in results):
        return "answer"
    values = [t for t in arguments[:-1] for t in (t if isinstance(t, (list, tuple)) else [t])]
    tolerance = 4 * max(WIDE.get(t.dtype, 0.1) for t in (*values, *results))
    with torch.no_grad():
        truth = expected(function, arguments)
    for value, exact in zip(results, truth, strict=True):
        assert close(value, exact, tolerance), about
    if function == "project" and arguments[1] is not arguments[2]:
        leaves = [t.detach().requires_grad_() for t in arguments[:3]]
        outputs = pk.project(*leaves, arguments[3])
        exact = expected(function, [*leaves, arguments[3]])[0]
        for a, b in zip(*(torch.autograd.grad(out.sum(), leaves) for out in (outputs, exact))):
            assert a.dtype == b.dtype and close(a, b.double(), tolerance), f"{about}: gradients"
    return "answer"


def shown(value: Any) -> Any:
    if isinstance(value, Tensor):
        return f"{value.dtype} {tuple(value.shape)} {value.layout} on {value.device}"
    return [shown(part) for part in value] if isinstance(value, (list, tuple)) else value
