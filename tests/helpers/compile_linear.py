"""Compiles the projected linear layer's kernels for a real card, without one, and prints a line of JSON for each.

Runs in a process of its own, because Triton's interpreter cannot be switched off once its kernels are imported.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from projkern.kernels.backends import triton_linear

CUOBJDUMP = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
SCALARS = ("B", "S", "N", "M", "x_step", "dy_step")
ALIGNED = ("N", "M", "x_step", "dy_step")
LOAD_16_BYTES = r"ld\.global[\w.:]*\.v4\.b32|cp\.async\.\w+\.shared\.global \[[^]]*\], \[[^]]*\], 0x10"
PRODUCT = r"mma\.sync|wgmma\.mma|tcgen05\.mma"


def compile_kernel(kernel, capability: int, weight: str, x: str, meta: dict[str, int]):
    types = {"W": weight, "dW": weight, "p": "fp32", "q": "fp32", "dp": "fp32", "dq": "fp32"}
    signature, constants, attributes = {}, {}, {}
    for i, name in enumerate(kernel.arg_names):
        if name in meta:
            signature[name], constants[(i,)] = "constexpr", meta[name]
        else:
            signature[name] = "i32" if name in SCALARS else "*" + types.get(name, x)
            if name not in SCALARS or name in ALIGNED:  # what the launcher finds in pointers and sizes
                attributes[(i,)] = [["tt.divisibility", 16]]
    options = {name: meta[name] for name in ("num_warps", "num_stages", "enable_fp_fusion")}
    source = ASTSource(kernel, signature, constants, attributes)
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)


def stack_bytes(cubin: bytes) -> int:
    """What a thread keeps in memory for want of registers."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        Path(file.name).write_bytes(cubin)
        command = [CUOBJDUMP, "-res-usage", file.name]
        usage = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return int(re.findall(r"STACK:(\d+)", usage)[0])


def main(capability: int) -> None:
    # Products of float32 use no tensor cores: there all cards are alike, and the first will do.
    cases = [("bf16", "bf16", 4, 64), ("fp32", "bf16", 8, 1)] + [("fp32", "fp32", 2, 16)] * (capability == 80)
    for weight, x, group, tokens in cases:
        sizes = {"bf16": 2, "fp32": 4}
        base = triton_linear._meta(tokens, group, group, sizes[weight], sizes[x])
        for name, meta in (
            ("_linear_forward_kernel", base),
            ("_input_gradient_kernel", base),
            ("_row_gradient_kernel", {**base, "A": triton.next_power_of_2(group)}),
            ("_column_gradient_kernel", base),
            ("_weight_gradient_kernel", triton_linear._weight_gradient_meta(base)),
        ):
            compiled = compile_kernel(getattr(triton_linear, name), capability, weight, x, meta)
            ptx = compiled.asm["ptx"]
            facts = {
                "name": name,
                "W": weight,
                "x": x,
                "group": group,
                "shared": compiled.metadata.shared,
                "stack": stack_bytes(compiled.asm["cubin"]),
                "tensor cores": bool(re.search(PRODUCT, ptx)),
                "16-byte loads": len(re.findall(LOAD_16_BYTES, ptx)),
            }
            print(json.dumps(facts))


if __name__ == "__main__":
    main(int(sys.argv[1]))
