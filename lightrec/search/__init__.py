"""From a state to a list. One file per way of searching; each is a `Search`."""
