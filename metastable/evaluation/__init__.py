"""Measurements: `metastable evaluate --help` lists them."""
