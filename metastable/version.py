"""The version, for the package, its wheel and the bundles it writes: nowhere else is it stated."""

__version__ = "0.1.0"
