"""Trainers: `python -m metastable.training TRAINER --help`; `__main__` has their names."""
