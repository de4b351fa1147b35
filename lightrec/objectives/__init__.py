"""Objectives: what is asked of a history while training."""
