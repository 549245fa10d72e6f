"""The exceptions that calotype raises on purpose.

Each derives from the built-in type that the reference's users already catch (``OSError`` for files,
``ValueError`` for arguments), so that an ``except`` clause of theirs keeps working.
"""

from __future__ import annotations


class CalotypeError(Exception):
    """Base of every error that calotype raises on purpose: its text is a sentence for the user."""


class InputError(CalotypeError, ValueError):
    """An argument that a call cannot accept; the text names it, its value and the values that are good."""


class ModelFilesError(CalotypeError, OSError):
    """A file of a model that is missing, damaged, refused or not what its name says."""


class WeightsError(ModelFilesError, ValueError):
    """Weights that do not fit the model: missing, superfluous or misshapen keys."""


class UnknownClassError(CalotypeError, ValueError):
    """A class that a model's files name and that calotype does not have."""
