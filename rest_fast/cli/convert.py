"""``rest-fast convert``: checkpoints of others into this package's."""

from __future__ import annotations

import sys
from argparse import Namespace

from rest_fast.cli.terminal import InputError, say


def convert(args: Namespace) -> None:
    commands = {
        "ltx-vae": _ltx_vae,
        "ltx-transformer": _ltx_transformer,
        "prompt": _prompt,
        "swap-vae": _swap_vae,
        "flashhead": _flashhead,
    }
    say(commands[args.what](args), sys.stdout)


def _ltx_vae(args: Namespace) -> str:
    from rest_fast.convert import convert_ltx_vae

    config = convert_ltx_vae(args.file, args.out, release=args.release, dtype=args.dtype)
    causal = "a causal decoder" if config.causal_decoder else "a decoder that is not causal"
    timed = ", told of noise in its latents" if config.timestep_conditioning else ""
    return f"{args.out}: a VAE with {config.latent_channels} latent channels and {causal}{timed}"


def _ltx_transformer(args: Namespace) -> str:
    from rest_fast.config import PRESETS, ModelConfig, preset
    from rest_fast.convert import convert_ltx_transformer

    if args.config in PRESETS:
        config = preset(args.config)
    else:
        try:
            with open(args.config, encoding="utf-8") as file:
                config = ModelConfig.from_json(file.read())
        except (OSError, UnicodeDecodeError) as e:
            raise InputError(f"--config {args.config}: expected a preset or a config.json, got neither ({e})") from None
    config = convert_ltx_transformer(args.file, args.out, vae=args.vae, config=config, dtype=args.dtype, seed=args.seed)
    return (
        f"{args.out}: {config.name}, {config.dit.layers} blocks of width {config.dit.width}, audio still to be trained"
    )


def _prompt(args: Namespace) -> str:
    from rest_fast.convert import convert_prompt

    tokens = convert_prompt(args.text, args.checkpoint, args.t5)
    return f"{args.checkpoint}: a prompt of {tokens} tokens"


def _swap_vae(args: Namespace) -> str:
    from rest_fast.convert import swap_vae

    config = swap_vae(args.model, args.vae, args.out)
    causal = "causal" if getattr(config.vae, "causal_decoder", True) else "not causal"
    return f"{args.out}: {config.name}, whose decoder is {causal}"


def _flashhead(args: Namespace) -> str:
    from rest_fast.convert import convert_flashhead

    config = convert_flashhead(args.folder, args.out, wav2vec=args.wav2vec, size=args.size, dtype=args.dtype)
    dit = config.dit
    return f"{args.out}: {config.name}, {dit.layers} blocks of width {dit.width} at {config.width} x {config.height}"
