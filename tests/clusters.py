"""A Ray cluster of one's own, for tests: apart from any other on this machine, and stopped with its test."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from metastable.evaluation.on_ray import RayPool, connected

STORE = 80 * 2**20  # bytes, the least that Ray takes


@contextmanager
def cluster(threads: int | None = None) -> Iterator[RayPool]:
    """Two workers, with as many threads as this process has."""
    threads = threads or torch.get_num_threads()
    folder = tempfile.mkdtemp(prefix="ray")  # short, because sockets lie in it
    given = {"num_cpus": 2 * threads, "object_store_memory": STORE, "_temp_dir": folder}
    try:
        with connected("local", threads=threads, **given) as pool:
            yield pool
    finally:
        shutil.rmtree(folder, ignore_errors=True)
