"""Every error that the package raises on purpose, and its one kind of warning. Imports nothing of the package.

All errors derive from :class:`RestFastError`, so that one ``except`` catches them. They are also ``ValueError`` or
``RuntimeError``, for callers who do not know this package. The modules that raise them export them, too.
"""

from __future__ import annotations

import sys
import warnings


class RestFastError(Exception):
    """Something this package refuses or cannot do: one line with its name, what was expected and what came."""


class ArgumentError(RestFastError, ValueError):
    """An argument of a call that cannot be used."""


class MediaError(RestFastError, ValueError):
    """A picture, sound or video that cannot be used: names it, what was expected and what came."""


class SigningError(RestFastError, ValueError):
    """A certificate, a key or a video that cannot be signed with: names it, what was expected and what came."""


class AvatarError(RestFastError, ValueError):
    """An avatar that does not fit: names the file or argument, the expectation and what came."""


class SessionClosed(RestFastError, RuntimeError):
    """A call that needs an open session."""


class EngineClosed(RestFastError, RuntimeError):
    """A call that needs an open engine."""


class CapacityExhausted(RestFastError, RuntimeError):
    """One session more than an engine can serve: names what is exhausted."""

    code = "CAPACITY_EXHAUSTED"


class BacklogFull(RestFastError, RuntimeError):
    """A push of sound beyond what may be queued; nothing of it was taken."""


class ProtocolError(RestFastError, ValueError):
    """A message that is refused: ``code`` for programs, the text for people."""

    def __init__(self, code: str, message: str):
        super().__init__(message)
        self.code = code


class StateError(RestFastError, ValueError):
    """A saved state, of a session or of a training, that does not fit or cannot be read."""


class ConfigError(RestFastError, ValueError):
    """A configuration that cannot be built: names the field, the expectation and the value."""


class CheckpointError(RestFastError, ValueError):
    """A checkpoint that does not load: names the file, the expectation and what was found."""


class HubError(CheckpointError, OSError):
    """A repository of the Hugging Face hub that cannot be read or written: names it and why.

    It is also an ``OSError``, which is what other libraries' ``from_pretrained`` raise.
    """


class InstallError(RestFastError, ValueError):
    """Something installed that this package does not work with: names it, what was expected and what came."""


class OpError(RestFastError, ValueError):
    """A call that an op refuses: names op, argument, expectation and value."""


class CaptureError(RestFastError, RuntimeError):
    """A CUDA graph that cannot be captured: names what, and why."""


class ConvertError(RestFastError, ValueError):
    """Something that cannot be converted: names the file, the expectation and what was found."""


class DataError(RestFastError, ValueError):
    """Prepared data that cannot be used: names the file, the expectation and what was found."""


class DetectorError(RestFastError, RuntimeError):
    """The face detector itself failed; no rule drops a clip for it."""


class TrainError(RestFastError, ValueError):
    """A training that cannot start: names what was expected and what was found."""


class CausalDecoderError(RestFastError, ValueError):
    """A VAE that the stage ``causal-decoder`` cannot use: names the file, the expectation and what was found."""


class DivergedError(RestFastError, ValueError):
    """A loss or a weight is not finite any more; the last state is kept."""


class EvaluationError(RestFastError, ValueError):
    """Something that was given to an evaluation cannot be used."""


class NoFace(EvaluationError):
    """A video with too many frames in which no face was found."""


class RestFastWarning(UserWarning):
    """The result may not be what was wanted; every warning of this package is of this category."""


def warn(message: str) -> None:
    """Warn at the line outside of this package and of PyTorch that led here."""
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] in ("rest_fast", "torch"):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, RestFastWarning, stacklevel=level)
