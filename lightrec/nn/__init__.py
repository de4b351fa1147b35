"""Building blocks: item tables, attention, feed-forward, and everything about lengths."""
