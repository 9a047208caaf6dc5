"""Trainers: `python -m metastable.training {classifier,score,energy-dsm,energy-ml} --help`."""
