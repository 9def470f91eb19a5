"""The model card of a checkpoint: ``README.md`` as the Hugging Face hub reads it, written from the two files alone."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from pathlib import Path

from safetensors import safe_open

from rest_fast.checkpoint import CONFIG, WEIGHTS, read_any_config
from rest_fast.config import SpeechConfig
from rest_fast.config.flashhead import Wav2VecConfig
from rest_fast.units import FPS, RATE

PARTS = {
    "VAE encoder": "vae.encoder.",
    "VAE decoder": "vae.decoder.",
    "speech encoder": "speech.",
    "denoiser (diffusion transformer)": "dit.",
}
CARD = """---
library_name: rest_fast
pipeline_tag: image-to-video
tags:
- talking-head
- audio-driven
- streaming{license_tag}
---

# {name}

One photo and a stream of speech go in, and {fps} frames per second of that face speaking come out. This is a checkpoint
for `rest_fast`, an open implementation of REST ([arXiv 2512.11229](https://arxiv.org/abs/2512.11229)).

This card was written from the checkpoint's files. It says what the model is, and nothing of what it was trained on or
how good it is: whoever trained it can say that here.

| | |
|---|---|
| picture | {width} x {height} pixels, {fps} frames per second, one face |
| sound | 8 to 96 kHz; heard at {rate} kHz, as {features} |
| a chunk | {latents} latent frames of {tokens} tokens, {seconds:.2f} s of video |
| sampling | {steps} steps, guidance {guidance:g}, unless asked otherwise |
{parts}
| `{weights}` | {tensors} tensors ({dtypes}), {megabytes:.1f} MB, sha256 `{sha256}` |

## Use

```python
from rest_fast import RestPipeline

pipe = RestPipeline.from_pretrained("{source}"{whisper})
out = pipe("face.png", "speech.wav")
out.frames[0]  # pictures, {fps} a second
```

`{config}` and `{weights}` are all that is loaded. Pickles never are, and no code comes from this repository.

## Licence and use

{license_note}

The model makes a person seem to say what that person may never have said. Animate only people who agreed to it, and
say that the video is synthetic.
"""
NO_LICENCE = (
    "No licence of the weights is stated. The software's (Apache-2.0) does not cover them: ask whoever trained them."
)


def model_card(folder: str | Path, *, source: str = "path/to/this/folder", license: str | None = None) -> str:
    """The card of the checkpoint in a folder: Markdown with a head of YAML.

    Args:
        source: what ``from_pretrained`` is to be given, for the example.
        license: of the weights, as the hub names it, such as ``apache-2.0``; None: the card says that none is stated.
    Raises: :class:`rest_fast.CheckpointError`.
    """
    config, weights = read_any_config(folder), Path(folder) / WEIGHTS
    with safe_open(weights, framework="pt") as file:
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
        dtypes = Counter(part.get_dtype() for part in slices.values())
        counts = {name: math.prod(part.get_shape()) for name, part in slices.items()}
    sizes = {part: sum(n for name, n in counts.items() if name.startswith(at)) for part, at in PARTS.items()}
    return CARD.format(
        name=" ".join(config.name.split()),  # one line, whatever a configuration says
        license_tag=f"\nlicense: {license}" if license else "",
        license_note=f"The weights are under the licence `{license}`." if license else NO_LICENCE,
        width=config.width,
        height=config.height,
        fps=FPS,
        rate=RATE // 1000,
        features=_features(config.speech),
        latents=config.stream.chunk,
        tokens=config.tokens,
        seconds=config.stream.chunk * config.latent_seconds,
        steps=config.sampling.steps,
        guidance=config.sampling.guidance,
        parts="\n".join(f"| {part} | {size / 1e6:.2f} M numbers |" for part, size in sizes.items()),
        tensors=len(counts),
        dtypes=", ".join(f"{n} {dtype}" for dtype, n in dtypes.most_common()),
        megabytes=weights.stat().st_size / 1e6,
        sha256=_sha256(weights),
        source=source,
        whisper=", whisper=your_whisper_model" if _of_whisper(config.speech) else "",
        config=CONFIG,
        weights=WEIGHTS,
    )


def _of_whisper(speech: SpeechConfig | Wav2VecConfig) -> bool:
    return isinstance(speech, SpeechConfig) and speech.features == "whisper"


def _features(speech: SpeechConfig | Wav2VecConfig) -> str:
    if isinstance(speech, Wav2VecConfig):
        return "hidden states of wav2vec 2.0, which is part of this checkpoint"
    if _of_whisper(speech):
        return "features of a Whisper encoder, which is not part of this checkpoint"
    return f"log-mel spectra of {speech.channels} bands"


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()
