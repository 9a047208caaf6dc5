"""Attacks, one a file.  Images [B, C, H, W] in [0, 1]; eps and steps in the same units."""
