"""Trainers: `metastable train TRAINER --help`; `__main__` has their names."""
