"""Compiles a kernel ahead of time, for a GPU that is not here, and reads what became of it.

Registers, stack and instructions come from the machine code by the tools that Triton ships; for AMD from the metadata
of its assembly. Nothing here runs on a GPU.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}


@dataclass(frozen=True)
class Compiled:
    """What a kernel needs."""

    registers: int
    """A thread's."""
    stack: int
    """Bytes of a thread's stack: what did not fit into registers."""
    loops: tuple[int, ...]
    """Instructions of each innermost loop, the longest first; NVIDIA only."""


def compile_for(
    target: str, kernel, constants: dict[str, object], pointers: dict[str, str], num_warps: int
) -> Compiled:
    """Compiles as a call would: pointers and sizes divisible by 16.

    Args:
        target: a key of TARGETS.
        kernel: a function under `triton.jit`, made without the interpreter.
        constants: values of constexpr arguments, and of integers that a call specialises.
        pointers: element types by argument, `*bf16`; the other arguments that end in `_ptr` are `*fp32`.
        num_warps: warps of a program.
    """
    names = kernel.arg_names
    signature = {
        name: "constexpr" if name in constants else pointers.get(name, "*fp32" if name.endswith("_ptr") else "i32")
        for name in names
    }
    whole = {(i,): [["tt.divisibility", 16]] for i, name in enumerate(names) if signature[name][0] in "*i"}
    whole = {key: value for key, value in whole.items() if names[key[0]] != "length"}
    source = ASTSource(
        fn=kernel, signature=signature, constexprs={(names.index(n),): v for n, v in constants.items()}, attrs=whole
    )
    made = triton.compile(source, target=TARGETS[target], options={"num_warps": num_warps, "enable_fp_fusion": True})
    if TARGETS[target].backend == "hip":
        text = made.asm["amdgcn"]
        spilled = sum(int(n) for n in re.findall(r"\.(?:vgpr|sgpr)_spill_count:\s+(\d+)", text))
        private = int(re.search(r"\.private_segment_fixed_size:\s+(\d+)", text)[1])
        return Compiled(int(re.search(r"\.vgpr_count:\s+(\d+)", text)[1]), max(private, spilled), ())
    return _read(made.asm["cubin"])


def _read(cubin: bytes) -> Compiled:
    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        usage = subprocess.run([tools / "cuobjdump", "-res-usage", path], capture_output=True, text=True, check=True)
        code = subprocess.run([tools / "nvdisasm", "-c", path], capture_output=True, text=True, check=True)
    registers, stack = (int(re.search(rf"{what}:(\d+)", usage.stdout)[1]) for what in ("REG", "STACK"))
    return Compiled(registers, stack, tuple(sorted(_innermost_loops(code.stdout), reverse=True)))


def _innermost_loops(code: str) -> list[int]:
    """Instructions between a label and the branch back to it, where no other such pair lies within."""
    labels, instructions, spans = {}, 0, []
    for line in code.splitlines():
        if label := re.match(r"\s*(\.L_x_\d+):", line):
            labels[label[1]] = instructions
        elif re.search(r"/\*[0-9a-f]{4,5}\*/", line):
            instructions += 1
            back = re.search(r"BRA[^`]*`\((\.L_x_\d+)\)", line)
            # a branch to itself only fills the end of the code
            if back and back[1] in labels and labels[back[1]] < instructions - 1:
                spans.append((labels[back[1]], instructions))
    inner = [s for s in spans if not any(o != s and s[0] <= o[0] and o[1] <= s[1] for o in spans)]
    return [stop - start for start, stop in inner]
