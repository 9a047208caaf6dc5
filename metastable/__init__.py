"""Metastable: purify an image with Markov chains, then classify it.

The library knows no server and no HTTP.  At every border between modules an image batch is
float32, NCHW, in [0, 1]; the range [-1, 1] exists inside the energy network only.
"""

__version__ = "0.1.0"
