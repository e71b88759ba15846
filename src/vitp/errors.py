"""The mistakes a user can mend. Each message is one sentence: where, what was found, what to do."""

from __future__ import annotations


class VitpError(ValueError):
    """A mistake the user can mend; the command line prints it without a traceback and exits with code 2."""


class ConfigError(VitpError):
    """A recipe or an override is wrong; the message lists every mistake with its dotted path."""


class DataError(VitpError):
    """A sample, an image or a data folder is unusable.

    `where` is ``file:line`` of the sample (or the file alone), kept apart so that reports can group by it.
    """

    def __init__(self, message: str, where: str = "") -> None:
        self.where = where
        self.reason = message
        super().__init__(f"{where}: {message}" if where else message)


class CheckpointError(VitpError):
    """A checkpoint or weights file is missing, damaged, or belongs to another architecture."""


class OutputError(VitpError):
    """An output place cannot be used: not empty, not writable, or no space left."""


class TrainingError(VitpError):
    """Training had to stop: the loss or the gradient is not finite, or too many samples were unusable."""


class MissingExtraError(VitpError):
    """An optional dependency is not installed; the message names the extra."""


class StoppedElsewhereError(VitpError):
    """Another rank tells the user of the mistake for which this process stops; the command line keeps silent."""
