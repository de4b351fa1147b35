"""Callbacks: what belongs to a Trainer."""
