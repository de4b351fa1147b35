"""Ranking metrics: functions of ranks, and their accumulation over batches and processes."""
