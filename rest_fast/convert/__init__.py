"""Converts others' checkpoints: LTX-Video's VAE and 2B transformer, and a prompt's embedding. Reads no pickles."""

from rest_fast.convert.ltx_transformer import convert_ltx_transformer
from rest_fast.convert.ltx_vae import convert_ltx_vae
from rest_fast.convert.prompt import convert_prompt
from rest_fast.convert.source import ConvertError
from rest_fast.convert.swap import swap_vae

__all__ = ["ConvertError", "convert_ltx_transformer", "convert_ltx_vae", "convert_prompt", "swap_vae"]
