"""A trained model in use: loaded from one file."""
