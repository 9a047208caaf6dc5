import pytest

from export import fused
from metastable.bundle import Bundle


@pytest.fixture(scope="session")
def tiny_steps(tiny: Bundle) -> dict[str, bytes]:
    """The graphs of fused steps of the small bundle."""
    return fused.build(tiny)
