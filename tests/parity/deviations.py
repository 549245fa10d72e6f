"""Where calotype differs from the reference on purpose: the case and why.

Keys are ``fnmatch`` patterns over the parity tests' case names (``area/Class/option=value,…``); a test whose case
matches asserts that the two really differ, so that an entry which has become untrue is found.
"""

from __future__ import annotations

from fnmatch import fnmatchcase

DEVIATIONS: dict[str, str] = {}


def deviation(case: str) -> str | None:
    """The reason why this case may differ from the reference, or None."""
    for pattern, reason in DEVIATIONS.items():
        if fnmatchcase(case, pattern):
            return reason
    return None
