"""The shipped folder of the demo model: a trained checkpoint in fp16, two portraits, a speech clip and a card.

    python -m rest_fast.training.demo_assets --model build/motion/run/asd --vae build/motion/vae.safetensors \\
        --out rest_fast/assets/demo

The portraits need the data of heads (docs/heads.md).
"""

from __future__ import annotations

import argparse
import wave
from pathlib import Path

import numpy as np
from PIL import Image

import rest_fast
from rest_fast.training.motion_vae import load
from rest_fast.training.shards import encoder_fingerprint
from rest_fast.training.synthetic.clips import identity
from rest_fast.training.synthetic.heads.motion import HEAD_MOTION
from rest_fast.training.synthetic.heads.pairs import make_person
from rest_fast.training.synthetic.portraits import draw, neutral
from rest_fast.training.synthetic.speech import speak
from rest_fast.units import RATE

SIDE = 512  # pixels of the portraits
HEAD = 910_012  # seed of a photo-like head that no training has seen
DRAWN = 10_008  # clip of the split `test`, outside of its first ones
SPEECH = (
    "en-us+f4",  # a voice of the split `test`
    "Hello! I am a drawing, and a computer speaks for me. "
    "Give me a photo and a recording, and my lips will follow everything that is said.",
)

CARD = """# Demo weights of rest_fast

A small REST (arXiv 2512.11229) that makes a portrait speak at 256 x 256 pixels and 25 frames per second on two CPU
cores. Every frame is the photo itself, moved, and painted where the photo does not show what it must.

Trained from nothing on invented people: rendered and drawn heads, recorded and synthetic voices of the programs flite
and espeak-ng, lips from phonemes. No person's photo was used. By which steps, how long it took and what was measured:
`docs/demo_model.md` of the project.

It can: let a person on a photograph, a painting or a drawing speak any speech, as the same person, for as long as the
speech lasts. It cannot: show teeth that are true to the person, turn a head by more than 20 degrees, speak other
languages' sounds than those of English voices, 512 x 512 pixels in real time on two cores. It will look like a
carefully moved photograph.

`portrait.png` (a rendered head), `portrait_2.png` (a drawing), `speech.wav`: made by the same tools from people, a
voice and words that training never saw or heard. Licence: Apache-2.0, as the project. Animate only people who agreed to
it.
"""


def write_examples(out: Path) -> None:
    """Two portraits of people never trained on, and a sentence in a voice never trained on."""
    rest = np.zeros((1, len(HEAD_MOTION)), np.float32)
    portraits = {
        "portrait.png": make_person(HEAD, 1, SIDE, 64, motion=rest).images[0],
        "portrait_2.png": draw(identity("test", DRAWN), neutral(), SIDE)[0],
    }
    for name, picture in portraits.items():
        Image.fromarray(picture).save(out / name, optimize=True)
    voice, text = SPEECH
    samples = speak(text, voice, rate=150).samples
    with wave.open(str(out / "speech.wav"), "wb") as file:
        file.setparams((1, 2, RATE, 0, "NONE", ""))
        file.writeframes((samples * 32767).round().astype("<i2").tobytes())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="the checkpoint to ship")
    parser.add_argument("--vae", type=Path, help="file of ``motion_vae join``: another decoder behind the same encoder")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    model = rest_fast.load(args.model, device="cpu")
    if args.vae is not None:
        other = load(args.vae, model.config.height)
        if encoder_fingerprint(other) != encoder_fingerprint(model.vae):
            parser.error(f"--vae {args.vae}: expected the encoder of {args.model}, got another one")
        model.vae.decoder.load_state_dict(other.decoder.state_dict())
    model.save(args.out)
    write_examples(args.out)
    (args.out / "README.md").write_text(CARD)


if __name__ == "__main__":
    main()
