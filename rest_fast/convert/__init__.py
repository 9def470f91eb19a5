"""Converts others' checkpoints: LTX-Video's VAE and 2B transformer, a prompt's embedding, SoulX-FlashHead Lite.

Reads no pickles.
"""

from rest_fast.convert.flashhead import convert_flashhead
from rest_fast.convert.ltx_transformer import convert_ltx_transformer
from rest_fast.convert.ltx_vae import convert_ltx_vae
from rest_fast.convert.prompt import convert_prompt
from rest_fast.convert.source import ConvertError
from rest_fast.convert.swap import swap_vae

__all__ = [
    "ConvertError",
    "convert_flashhead",
    "convert_ltx_transformer",
    "convert_ltx_vae",
    "convert_prompt",
    "swap_vae",
]
