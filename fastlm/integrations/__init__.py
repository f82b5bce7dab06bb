"""Other libraries' models and weights."""
