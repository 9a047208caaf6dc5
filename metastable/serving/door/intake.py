"""What the door takes from one request, and from all of them together."""

from __future__ import annotations

from dataclasses import dataclass, field

from metastable.images import ImageLimits


@dataclass(frozen=True)
class Intake:
    """Limits of what is read and decoded.

    Attributes:
        body: bytes of one request's body, and of what a compressed one becomes.
        bodies: bytes of all bodies that are held together.
        images: of one request.
        image: bytes and pixels of one image.
        threads: that decode images.
    """

    body: int = 24_000_000  # 16 MB in base64, and some room
    bodies: int = 256_000_000
    images: int = 32
    image: ImageLimits = field(default_factory=lambda: ImageLimits(16_000_000, 50_000_000))
    threads: int = 2

    def __post_init__(self) -> None:
        least = {"body": 1, "bodies": self.body, "images": 1, "threads": 1}
        for name, value in least.items():
            if getattr(self, name) < value:
                raise ValueError(f"the limit {name} must be at least {value}")
