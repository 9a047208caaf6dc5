"""Measurements: `python -m metastable.evaluation {calibrate,table,robust,latency} --help`."""
