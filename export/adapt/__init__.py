"""Classifiers as people have them, made into the one form that a bundle takes."""

from export.adapt.adapting import adapt
from export.adapt.alternatives import alternatives, one_class_warning
from export.adapt.modules import from_module, from_timm, same_as_module
from export.adapt.names import class_names
from export.adapt.values import Adapted, Wishes

__all__ = [
    "Adapted",
    "Wishes",
    "adapt",
    "alternatives",
    "class_names",
    "from_module",
    "from_timm",
    "one_class_warning",
    "same_as_module",
]
