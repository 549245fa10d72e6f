"""How much the library says: verbosity, handlers and progress bars, under the names that users know.

The library logs through Python's ``logging`` below the logger ``calotype``. Its own handler writes to standard
error, and only while the application has set up no logging of its own, so that nothing appears twice.
"""

from __future__ import annotations

import logging
import os
import sys
from logging import CRITICAL, DEBUG, ERROR, FATAL, INFO, NOTSET, WARN, WARNING
from typing import TextIO

from calotype.core import progress
from calotype.core.errors import InputError

__all__ = [
    "CRITICAL",
    "DEBUG",
    "ERROR",
    "FATAL",
    "INFO",
    "NOTSET",
    "WARN",
    "WARNING",
    "add_handler",
    "disable_default_handler",
    "disable_progress_bar",
    "disable_propagation",
    "enable_default_handler",
    "enable_explicit_format",
    "enable_progress_bar",
    "enable_propagation",
    "get_log_levels_dict",
    "get_logger",
    "get_verbosity",
    "is_progress_bar_enabled",
    "remove_handler",
    "reset_format",
    "set_verbosity",
    "set_verbosity_debug",
    "set_verbosity_error",
    "set_verbosity_info",
    "set_verbosity_warning",
]

_LEVELS = {"debug": DEBUG, "info": INFO, "warning": WARNING, "error": ERROR, "critical": CRITICAL}
_ROOT = logging.getLogger("calotype")
_EXPLICIT = logging.Formatter("[%(levelname)s|%(filename)s:%(lineno)s] %(asctime)s >> %(message)s")


class _StandardError(logging.StreamHandler[TextIO]):
    """Writes to whatever ``sys.stderr`` is at the moment (notebooks and tests exchange it)."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> TextIO:  # type: ignore[override]
        return sys.stderr


def _nobody_else_reports(record: logging.LogRecord) -> bool:
    return not _ROOT.propagate or not logging.getLogger().handlers


_DEFAULT_HANDLER = _StandardError()
_DEFAULT_HANDLER.addFilter(_nobody_else_reports)


def get_logger(name: str | None = None) -> logging.Logger:
    """A logger by name; without one, the library's own."""
    return logging.getLogger(name or _ROOT.name)


def get_log_levels_dict() -> dict[str, int]:
    """The level names that ``CALOTYPE_VERBOSITY`` understands, and their numbers."""
    return dict(_LEVELS)


def get_verbosity() -> int:
    """The level from which the library's messages are shown."""
    return _ROOT.getEffectiveLevel()


def set_verbosity(verbosity: int) -> None:
    """Show the library's messages from this level on (``logging.INFO``, …)."""
    _ROOT.setLevel(verbosity)


def set_verbosity_debug() -> None:
    """Show everything."""
    set_verbosity(DEBUG)


def set_verbosity_info() -> None:
    """Show information, warnings and errors."""
    set_verbosity(INFO)


def set_verbosity_warning() -> None:
    """Show warnings and errors: the default."""
    set_verbosity(WARNING)


def set_verbosity_error() -> None:
    """Show errors only."""
    set_verbosity(ERROR)


def enable_default_handler() -> None:
    """Let the library write its messages to standard error: the default."""
    _ROOT.addHandler(_DEFAULT_HANDLER)


def disable_default_handler() -> None:
    """Leave it to the application's own handlers to show the library's messages."""
    _ROOT.removeHandler(_DEFAULT_HANDLER)


def add_handler(handler: logging.Handler) -> None:
    """Send the library's messages to one more handler."""
    _ROOT.addHandler(handler)


def remove_handler(handler: logging.Handler) -> None:
    """Take away a handler that ``add_handler`` added; one that is not there is an ``InputError``."""
    if handler not in _ROOT.handlers:
        raise InputError(f"{handler!r} is not one of the library's handlers, so it cannot be removed.")
    _ROOT.removeHandler(handler)


def enable_propagation() -> None:
    """Pass messages on to the application's root logger: the default."""
    _ROOT.propagate = True


def disable_propagation() -> None:
    """Keep messages from the application's root logger."""
    _ROOT.propagate = False


def enable_explicit_format() -> None:
    """Put level, file, line and time before each message."""
    for handler in _ROOT.handlers:
        handler.setFormatter(_EXPLICIT)


def reset_format() -> None:
    """Show bare messages: the default."""
    for handler in _ROOT.handlers:
        handler.setFormatter(None)


def enable_progress_bar() -> None:
    """Draw progress bars: the default."""
    progress.show(True)


def disable_progress_bar() -> None:
    """Draw no progress bars."""
    progress.show(False)


def is_progress_bar_enabled() -> bool:
    """Whether progress bars are drawn."""
    return progress.shown()


def _level_from_environment() -> int:
    name = os.environ.get("CALOTYPE_VERBOSITY", "warning").strip().lower()
    if name not in _LEVELS:
        _ROOT.warning("CALOTYPE_VERBOSITY=%s is no level; the levels are %s.", name, ", ".join(_LEVELS))
    return _LEVELS.get(name, WARNING)


enable_default_handler()
if _ROOT.level == NOTSET:
    set_verbosity(_level_from_environment())
