"""Measurements: `python -m metastable.evaluation --help` lists them."""
