"""What a client sent, bytes of a PNG, JPEG, WebP or .npy file, to a checked image tensor.

The bytes are hostile until shown otherwise. The size is checked in the header first; Pillow then gets only
the parts that make pixels: no text, colour profile, EXIF or animation chunk of a PNG or JPEG, so that none of
them can be a bomb, and nothing is left to warn about (muting warnings is not thread safe: their filters are
global). Colour profiles and gamma are ignored. How an image of another size is fitted, `Fit` says. A .npy
shape that can be read as both HWC and CHW, such as [3, 32, 3], is HWC.
"""

from metastable.images.decoding import DecodedImage, decode, pixels_of
from metastable.images.fit import INTERPOLATIONS, LEAST_SHARE, MODES, STRETCH, Fit
from metastable.images.limits import DEFAULT_LIMITS, PIXEL_CEILING, ImageLimits
from metastable.images.raster import Box

__all__ = [
    "DEFAULT_LIMITS",
    "INTERPOLATIONS",
    "LEAST_SHARE",
    "MODES",
    "PIXEL_CEILING",
    "STRETCH",
    "Box",
    "DecodedImage",
    "Fit",
    "ImageLimits",
    "decode",
    "pixels_of",
]
