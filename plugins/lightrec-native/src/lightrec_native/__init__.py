"""Kernels of lightrec for CPUs: the selective scan and the hyperbolic maps in C++, with AVX2 or AVX-512 where they are.

Without its library (no compiler when it was installed) a kernel refuses with that reason and lightrec runs another.
"""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from lightrec.ops.registry import Kernel
from lightrec_native.build import damaged

LIBRARY = Path(__file__).with_name("_scan.so")
ABI = 2
_ROWS = 4  # batch rows a group: a group is a thread's unit of work and one partial sum, whatever the threads
_THREADED = 2**18  # states; below this, starting a thread costs more than it brings

_MAP_ROWS = 512

_SIZES = ("B", "L", "D", "N", "every", "rows", "softplus")
_POINTERS = (
    "x delta A Bm C skip z bias initial resets out final kept grad_out grad_final "
    "dx ddelta dA dB dC dskip dz dbias dinitial"
).split()


class _Arguments(ctypes.Structure):
    _fields_ = [(n, ctypes.c_int64) for n in _SIZES] + [(n, ctypes.c_void_p) for n in _POINTERS]


class _Map(ctypes.Structure):
    _fields_ = [(n, ctypes.c_int64) for n in ("R", "D", "rows", "logarithm")]
    _fields_ += [(n, ctypes.c_void_p) for n in ("v", "grad", "out", "kept", "dkappa")]
    _fields_ += [("kappa", ctypes.c_double)]


@cache
def _open(path: Path) -> tuple[ctypes.CDLL | None, str | None]:
    """The library, or why there is none."""
    if not path.exists():
        return None, "its library was not built: install a C++ compiler, then lightrec-native again"
    try:
        if damaged(path):
            return None, "its library is damaged; install lightrec-native again"
        library = ctypes.CDLL(str(path))
        found = library.lightrec_abi()
        if found != ABI:
            return None, f"its library has interface {found}, this code wants {ABI}; install lightrec-native again"
        library.lightrec_scan.argtypes = [ctypes.POINTER(_Arguments), ctypes.c_int, ctypes.c_int, ctypes.c_int]
        library.lightrec_map.argtypes = [ctypes.POINTER(_Map), ctypes.c_int, ctypes.c_int, ctypes.c_int]
        library.lightrec_scan.restype = library.lightrec_map.restype = None
        library.lightrec_exp_floor.argtypes = [ctypes.c_int64, ctypes.c_int]
        library.lightrec_exp_floor.restype = ctypes.c_float
    except (OSError, AttributeError) as error:
        return None, f"its library cannot be loaded here ({error}); install lightrec-native again on this machine"
    return library, None


def accepts(spec) -> str | None:
    """None, or why the kernel cannot run this call."""
    if spec.device != "cpu":
        return f"it runs on the CPU, not on {spec.device}"
    if spec.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return f"it computes in float32; x is {spec.dtype}"
    return _open(LIBRARY)[1]


def lanes() -> int:
    """Floats in a vector of the code that this machine runs: 16 (AVX-512), 8 (AVX2) or 4."""
    return _open(LIBRARY)[0].lightrec_lanes()


def exp_floor(count: int) -> float:
    """Makes `count` exponentials in one thread and nothing else: what no scan of as many states can undercut."""
    return _open(LIBRARY)[0].lightrec_exp_floor(count, lanes())


def _ready(tensor: Tensor | None, dtype: torch.dtype = torch.float32) -> Tensor | None:
    return None if tensor is None else tensor.detach().to(dtype).contiguous()


def _call(backward: bool, sizes: dict[str, int], tensors: dict[str, Tensor | None]) -> None:
    # `tensors` keeps every copy alive until the call returns
    pointers = {name: None if t is None else t.data_ptr() for name, t in tensors.items()}
    states = sizes["B"] * sizes["L"] * sizes["D"] * sizes["N"]
    threads = torch.get_num_threads() if states >= _THREADED else 1
    library = _open(LIBRARY)[0]
    library.lightrec_scan(ctypes.byref(_Arguments(**sizes, **pointers)), backward, lanes(), threads)


def _sizes(x: Tensor, A: Tensor, every: int, softplus: bool) -> dict[str, int]:
    return dict(zip(_SIZES, (*x.shape, A.shape[1], every, _ROWS, softplus), strict=True))


def forward(x, delta, A, B, C, D, z, delta_bias, initial_state, resets, softplus, every):
    """See lightrec.ops.selective_scan."""
    made = {
        "out": torch.empty(x.shape),
        "final": torch.empty(x.shape[0], *A.shape),
        "kept": torch.empty(x.shape[0], -(-x.shape[1] // every), *A.shape),
    }
    given = dict(x=x, delta=delta, A=A, Bm=B, C=C, skip=D, z=z, bias=delta_bias, initial=initial_state)
    ready = {name: _ready(t) for name, t in given.items()} | {"resets": _ready(resets, torch.bool)}
    _call(False, _sizes(x, A, every, softplus), ready | made)
    return made["out"].to(x.dtype), made["final"], made["kept"]


def backward(grad_out, grad_final, x, delta, A, B, C, D, z, delta_bias, resets, kept, softplus, every):
    """See lightrec.ops.selective_scan."""
    groups = -(-x.shape[0] // _ROWS)
    made = {
        "dx": torch.empty(x.shape),
        "ddelta": torch.empty(x.shape),
        "dA": torch.empty(groups, *A.shape),
        "dB": torch.empty(B.shape),
        "dC": torch.empty(C.shape),
        "dskip": torch.empty(groups, x.shape[2]),
        "dz": None if z is None else torch.empty(x.shape),
        "dbias": torch.empty(groups, x.shape[2]),
        "dinitial": torch.empty(x.shape[0], *A.shape),
    }
    given = dict(x=x, delta=delta, A=A, Bm=B, C=C, skip=D, z=z, bias=delta_bias, kept=kept)
    given |= dict(grad_out=grad_out, grad_final=grad_final)
    ready = {name: _ready(t) for name, t in given.items()} | {"resets": _ready(resets, torch.bool)}
    _call(True, _sizes(x, A, every, softplus), ready | made)
    skip = None if D is None else made["dskip"].sum(0)
    bias = None if delta_bias is None else made["dbias"].sum(0)
    rest = made["dA"].sum(0), made["dB"], made["dC"], skip, made["dz"], bias, made["dinitial"]
    return made["dx"], made["ddelta"], *rest


def accepts_map(spec) -> str | None:
    """None, or why the maps cannot run this call."""
    return "it cannot be part of a compiled graph" if spec.compiling else accepts(spec)


def _map(backward: bool, kappa: Tensor, function: str, v: Tensor, **tensors: Tensor) -> None:
    rows, size = v.numel() // max(1, v.shape[-1]), v.shape[-1]
    pointers = {name: t.data_ptr() for name, t in tensors.items()}
    facts = dict(R=rows, D=size, rows=_MAP_ROWS, logarithm=function == "log0", kappa=kappa.item(), v=v.data_ptr())
    threads = torch.get_num_threads() if v.numel() >= _THREADED else 1
    _open(LIBRARY)[0].lightrec_map(ctypes.byref(_Map(**facts, **pointers)), backward, lanes(), threads)


def map_forward(v, kappa, function):
    """See lightrec.ops.hyperbolic_selective_scan."""
    ready, kept = _ready(v), torch.empty(*v.shape[:-1], 3)
    out = torch.empty(v.shape)
    _map(False, kappa, function, ready, out=out, kept=kept)
    return out.to(v.dtype), kept


def map_backward(grad, v, kappa, kept, function):
    """See lightrec.ops.hyperbolic_selective_scan."""
    ready, upstream = _ready(v), _ready(grad)
    dv, groups = torch.empty(v.shape), -(-kept[..., 0].numel() // _MAP_ROWS)
    dkappa = torch.empty(groups, dtype=torch.float64)
    _map(True, kappa, function, ready, grad=upstream, out=dv, kept=kept, dkappa=dkappa)
    return dv, dkappa.sum()


def kernels() -> list[Kernel]:
    """Entry point of the group `lightrec.kernels`."""
    return [
        Kernel("selective_scan", "native", forward, backward, accepts, priority=50, checkpoint_every=16),
        Kernel("radial_map", "native", map_forward, map_backward, accepts_map, priority=50),
    ]
