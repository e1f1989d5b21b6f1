"""Benchmarks of what a model writes, scored as the field scores them."""
