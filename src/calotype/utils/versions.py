"""The question that training scripts ask first: is the library new enough for me?"""

from __future__ import annotations

from calotype.core.errors import CalotypeError
from calotype.core.version import FORMAT_VERSION


class VersionError(CalotypeError, ImportError):
    """A script asks for a newer release than the one whose interface this is."""


def check_min_version(min_version: str) -> None:
    """Raise ``VersionError`` if a script wants a newer interface than that of release ``FORMAT_VERSION``.

    Scripts state the reference's release here (``"0.42.0"``, ``"0.43.0.dev0"``), so that is what is compared.
    """
    from packaging.version import Version

    if Version(min_version) > Version(FORMAT_VERSION):
        raise VersionError(
            f"This script wants the interface of release {min_version}; calotype has that of {FORMAT_VERSION}. "
            f"Use a version of the script that was made for {FORMAT_VERSION}."
        )
