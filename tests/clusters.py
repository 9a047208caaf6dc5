"""A Ray cluster of one's own, for tests: apart from any other on this machine, and stopped with its test."""

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch

from metastable.errors import DataError
from metastable.evaluation.on_ray import RayPool, connected

STORE = 80 * 2**20  # bytes, the least that Ray takes
STARTS = 4  # a node that is not there within 30 s is given up by Ray, and a busy machine takes longer


@contextmanager
def cluster() -> Iterator[RayPool]:
    """Two workers, with as many threads as this process has."""
    threads = torch.get_num_threads()
    with ExitStack() as stack:
        for left in reversed(range(STARTS)):
            # A short name, because sockets lie in it.
            folder = stack.enter_context(
                tempfile.TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True)
            )
            given = {"num_cpus": 2 * threads, "object_store_memory": STORE, "_temp_dir": folder}
            try:
                pool = stack.enter_context(connected("local", threads=threads, **given))
                break
            except DataError as error:
                if not left or "timed out during startup" not in str(error):
                    raise
        yield pool
