"""Data: from a log on disk to batches. Knows no model."""
