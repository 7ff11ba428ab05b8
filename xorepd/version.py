"""Which xorepd this is."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

try:
    VERSION = version("xorepd")
except PackageNotFoundError:
    VERSION = "0+source"  # run from a source tree that nobody installed
