"""The networks. :class:`TemporalVAE` can be used on its own, with the memory and the scratch of its streams; the others
are parts of :class:`rest_fast.Model`."""

from rest_fast.models.vae import TemporalVAE
from rest_fast.models.vae.layers import DecodeWorkspace
from rest_fast.models.vae.state import StreamState

__all__ = ["DecodeWorkspace", "StreamState", "TemporalVAE"]
