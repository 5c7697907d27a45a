"""The tree of errors: everything lipcheck raises on purpose is a LipcheckError.

    LipcheckError
    ├── UsageError            an option or argument that cannot mean anything
    ├── SourceError           a model, checkpoint or folder that cannot be opened
    │   ├── UnknownModelError     no such name; carries the nearest ones
    │   ├── MissingExtraError     an optional library is not installed; names the extra
    │   ├── WeightsError          weights that are missing, do not fit or are not finite
    │   └── InputSizeError        an input shape that is unknown or does not fit the model
    ├── CaptureError          the model's graph could not be captured, or does not equal the model
    ├── CertificateError      a bound that could not be certified as asked
    └── OutputError           a report that could not be written

Messages are one line: the place, the value met, what was expected, the next step.
"""


class LipcheckError(Exception):
    """Base of every error that lipcheck raises on purpose; its text is one line for people."""


class UsageError(LipcheckError):
    """An option or argument that cannot mean anything."""


class SourceError(LipcheckError):
    """A model, checkpoint or folder that cannot be opened."""


class UnknownModelError(SourceError):
    """No model has this name."""


class MissingExtraError(SourceError):
    """An optional library is needed and not installed."""


class WeightsError(SourceError):
    """Weights that are missing, do not fit the architecture or are not finite."""


class InputSizeError(SourceError):
    """An input shape that is unknown or does not fit the model."""


class CaptureError(LipcheckError):
    """The model's graph could not be captured, or does not reproduce the model."""


class CertificateError(LipcheckError):
    """A bound could not be certified as asked."""


class OutputError(LipcheckError):
    """A report could not be written."""
