"""The version of the package, without importing anything heavy."""

__version__ = "0.1.0"
