"""Triton kernels of lightrec. `kernels` is what the entry point of the group `lightrec.kernels` names."""


def kernels():
    """Returns the kernels of this distribution; imports Triton."""
    from lightrec_triton.cross_entropy import kernels as heads
    from lightrec_triton.selective_scan import kernels as scans

    return [*scans(), *heads()]
