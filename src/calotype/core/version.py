"""The package's version, and the version of the file layout that it reads and writes."""

__version__ = "0.1.0"

FORMAT_VERSION = "0.42.1"
"""The Diffusers release whose file layout ours equals; stands as ``_diffusers_version`` in JSON files."""
