"""Tasks: each is its data, its model with heads, its losses, its metrics and its report."""
