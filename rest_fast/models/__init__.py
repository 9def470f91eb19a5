"""The networks. :class:`TemporalVAE` is of use on its own; the others are parts of :class:`rest_fast.Model`."""

from rest_fast.models.vae import TemporalVAE

__all__ = ["TemporalVAE"]
