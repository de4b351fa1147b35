"""Ops: one file each, the contract and its PyTorch reference together."""
