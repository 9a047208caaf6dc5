"""Measurements: `python -m metastable.evaluation {calibrate,table} --help`."""
