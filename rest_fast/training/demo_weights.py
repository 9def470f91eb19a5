"""The demo weights from nothing: ``rest-fast train all --work DIR --out DIR``, resumable stage by stage.

    data     clips of drawn talking heads (``synthetic``)
    basis    the VAE's linear basis; latents and coefficients of all clips
    dit      SpeechAE encoder and DiT (``demo_dit``)
    decoder  mixer, then mixer and post-net (``demo_vae``)
    pack     averages of both trainings, a checkpoint with portraits, a speech clip and a card

``dit`` and ``decoder`` need ``basis`` alone and may run at the same time.
"""

from __future__ import annotations

import logging
import wave
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from rest_fast.config import preset
from rest_fast.model import Model
from rest_fast.training import demo_dit, demo_vae
from rest_fast.training.synthetic import clips as synthetic
from rest_fast.training.synthetic.portraits import draw, neutral
from rest_fast.training.synthetic.speech import RATE, speak

log = logging.getLogger("rest_fast.training")

STAGES = ("data", "basis", "dit", "decoder", "pack")
CLIPS, DIT_STEPS, MIXER_STEPS, DECODER_STEPS = 2000, 8000, 2600, 4400
PORTRAITS = {"portrait.png": 10_008, "portrait_2.png": 10_022}  # clips of the split `test`, outside of its first ones
SPEECH = (
    "en-us+f4",  # a voice of the split `test`
    "Hello! I am a drawing, and a computer speaks for me. "
    "Give me a photo and a recording, and my lips will follow everything that is said.",
)

CARD = """# Demo weights of rest_fast

A small REST (arXiv 2512.11229) that makes a 128 x 128 portrait speak at 25 frames per second on two CPU cores.

Trained from nothing on {clips} synthetic clips of 97 frames: drawn people (skia), espeak-ng voices, lips from phonemes.
Steps: speech encoder and DiT {dit} of batch 8 (flow matching, CANS noise), VAE mixer {mixer} of batch 8, VAE decoder
{decoder} of batch 2. No person's face or voice was used. How long it took and what was measured: `docs/demo_model.md`
of the project.

It can: follow unseen synthetic voices and sentences with the lips of an unseen drawn face, for as long as the speech
lasts. It cannot: do justice to a photograph (it has only seen drawings), other languages' sounds than those of English
voices, faces that are not frontal, more than 128 x 128 pixels.

`portrait.png`, `portrait_2.png`, `speech.wav`: made by the same tools from people, a voice and words that training
never saw or heard. Licence: Apache-2.0, as the project. Animate only people who agreed to it.
"""


def run(
    stage: str,
    work: Path,
    out: Path | None,
    *,
    clips: int = CLIPS,
    dit_steps: int = DIT_STEPS,
    mixer_steps: int = MIXER_STEPS,
    decoder_steps: int = DECODER_STEPS,
    workers: int = 0,
    threads: int = 1,
) -> None:
    """Run one stage, or ``all``.

    Args:
        stage: one of :data:`STAGES` or ``all``.
        work: folder of clips and training state; what is there already is gone on from.
        out: folder of the checkpoint; needed by ``pack`` alone.
        clips: number of training clips of 97 frames.
        dit_steps, mixer_steps, decoder_steps: length of the trainings.
        workers: processes that draw (0: one for each core).
        threads: of PyTorch; more than one only when no other core is busy.
    """
    stages = STAGES if stage == "all" else (stage,)
    if not set(stages) <= set(STAGES):
        raise ValueError(f"train: stage: expected one of {', '.join(STAGES)} or all, got {stage!r}")
    if "pack" in stages and out is None:
        raise ValueError("train: the stage pack needs --out, the folder of the checkpoint")
    torch.set_num_threads(threads)
    work.mkdir(parents=True, exist_ok=True)
    folder = work / "train"
    if "data" in stages and not (folder / synthetic.CLIPS).exists():
        log.info("data: %d clips", clips)
        synthetic.write_clips(folder, clips, size=preset("demo").height, workers=workers)
    if stages == ("data",):
        return
    train = synthetic.Clips(folder)
    if "data" in stages and len(train) != clips:
        raise ValueError(f"{folder}: expected {clips} clips, found {len(train)}; choose another --work")
    torch.manual_seed(0)
    model = Model(preset("demo")).requires_grad_(False)
    latents, truth = _basis(model, train, work, fit="basis" in stages)
    if stages == ("basis",):
        return
    if stages == ("pack",):
        for state, trained in (("dit", "dit"), ("mixer", "decoder"), ("decoder", "decoder")):
            _require(work / f"{state}.safetensors", trained)
    done = {}
    if "dit" in stages or "pack" in stages:
        done["dit"] = demo_dit.train_dit(model, train, latents, dit_steps if "dit" in stages else 0, work)
    if "decoder" in stages or "pack" in stages:
        fit = "decoder" in stages
        demo_vae.calibrate_mixer(model, latents, truth)
        done["mixer"] = demo_vae.train_mixer(model, latents, truth, mixer_steps if fit else 0, work)
        done["decoder"] = demo_vae.train_decoder(model, train, latents, decoder_steps if fit else 0, work)
    if "pack" in stages:
        assert out is not None
        log.info("pack: dit of %(dit)d steps, mixer of %(mixer)d, decoder of %(decoder)d", done)
        model.save(out)
        write_examples(out)
        (out / "README.md").write_text(CARD.format(clips=len(train), **done))


def _basis(model: Model, clips: synthetic.Clips, work: Path, fit: bool) -> tuple[torch.Tensor, np.ndarray]:
    """The basis into the model; latents [N, 13 T, C] and true coefficients [N, 13, P, 8, rank] of all clips, fp16."""
    path, truth = work / "basis.safetensors", work / "coefficients.npy"
    basis, _ = demo_vae.parts(model)
    if not path.exists():
        if not fit:
            _require(path, "basis")
        log.info("basis: principal components of %d clips", len(clips))
        demo_vae.fit_basis(basis, clips)
        demo_vae.write_coefficients(basis, clips, truth)
        latents = demo_vae.encode_all(model, clips)
        partial = path.with_suffix(".partial")
        save_file({"latents": latents, **basis.state_dict()}, partial)
        partial.replace(path)
    saved = load_file(path)
    latents = saved.pop("latents")
    if len(latents) != len(clips):
        raise ValueError(
            f"{path}: expected the latents of {len(clips)} clips, got {len(latents)}; remove it to start anew"
        )
    basis.load_state_dict(saved)
    return latents, np.load(truth, mmap_mode="r")


def _require(path: Path, stage: str) -> None:
    if not path.exists():
        raise ValueError(f"train: expected the result of the stage {stage}, found no {path}")


def write_examples(out: Path) -> None:
    """Two portraits of people never trained on, and a sentence in a voice never trained on."""
    for name, index in PORTRAITS.items():
        picture = Image.fromarray(draw(synthetic.identity("test", index), neutral(), 512)[0])
        picture.save(out / name, optimize=True)
    voice, text = SPEECH
    samples = speak(text, voice, rate=150).samples
    with wave.open(str(out / "speech.wav"), "wb") as file:
        file.setparams((1, 2, RATE, 0, "NONE", ""))
        file.writeframes((samples * 32767).round().astype("<i2").tobytes())
