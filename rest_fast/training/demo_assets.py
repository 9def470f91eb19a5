"""The shipped folder of the demo model: a trained checkpoint in fp16, two portraits, a speech clip and a card.

python -m rest_fast.training.demo_assets --model build/demo/run/asd --out rest_fast/assets/demo
"""

from __future__ import annotations

import argparse
import wave
from pathlib import Path

from PIL import Image

import rest_fast
from rest_fast.training.synthetic.clips import identity
from rest_fast.training.synthetic.portraits import draw, neutral
from rest_fast.training.synthetic.speech import speak
from rest_fast.units import RATE

PORTRAITS = {"portrait.png": 10_008, "portrait_2.png": 10_022}  # clips of the split `test`, outside of its first ones
SPEECH = (
    "en-us+f4",  # a voice of the split `test`
    "Hello! I am a drawing, and a computer speaks for me. "
    "Give me a photo and a recording, and my lips will follow everything that is said.",
)

CARD = """# Demo weights of rest_fast

A small REST (arXiv 2512.11229) that makes a 128 x 128 portrait speak at 25 frames per second on two CPU cores.

Trained from nothing on synthetic clips: drawn people (skia), espeak-ng voices, lips from phonemes. No person's face or
voice was used. By which steps, how long it took and what was measured: `docs/demo_model.md` of the project.

It can: follow unseen synthetic voices and sentences with the lips of an unseen drawn face, for as long as the speech
lasts. It cannot: do justice to a photograph (it has only seen drawings), other languages' sounds than those of English
voices, faces that are not frontal, more than 128 x 128 pixels.

`portrait.png`, `portrait_2.png`, `speech.wav`: made by the same tools from people, a voice and words that training
never saw or heard. Licence: Apache-2.0, as the project. Animate only people who agreed to it.
"""


def write_examples(out: Path) -> None:
    """Two portraits of people never trained on, and a sentence in a voice never trained on."""
    for name, index in PORTRAITS.items():
        picture = Image.fromarray(draw(identity("test", index), neutral(), 512)[0])
        picture.save(out / name, optimize=True)
    voice, text = SPEECH
    samples = speak(text, voice, rate=150).samples
    with wave.open(str(out / "speech.wav"), "wb") as file:
        file.setparams((1, 2, RATE, 0, "NONE", ""))
        file.writeframes((samples * 32767).round().astype("<i2").tobytes())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="the checkpoint to ship")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    rest_fast.load(args.model, device="cpu").save(args.out)
    write_examples(args.out)
    (args.out / "README.md").write_text(CARD)


if __name__ == "__main__":
    main()
