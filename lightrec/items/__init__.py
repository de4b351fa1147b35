"""Item tables: one file per way in which an item has a vector and a score."""
