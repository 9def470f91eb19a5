"""``rest-fast convert swap-vae``, and the same VAE through training's ``--vae`` and ``prepare-data --weights``."""

from __future__ import annotations

import dataclasses

import pytest
import torch

import rest_fast
from rest_fast import checkpoint, cli
from rest_fast.convert import ConvertError, swap_vae
from rest_fast.models.vae import TemporalVAE
from rest_fast.training.config import training_preset
from tests.kit.models import randomise, toy
from tests.kit.toys import photo, sound
from tests.kit.toys import toy as toy_model

RELEASED = {"vae__causal_decoder": False, "vae__timestep_conditioning": True, "vae__decode_noise_scale": 0.025}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A model whose decoder is not causal, and a VAE of the same encoder whose decoder is."""
    folder = tmp_path_factory.mktemp("swap")
    model = toy_model(vae=toy().replace(**RELEASED).vae)
    model.save(folder / "model", torch.float32)
    student = TemporalVAE(dataclasses.replace(model.config.vae, causal_decoder=True))
    randomise(student, 2)
    for name, tensor in model.vae.state_dict().items():
        if not name.startswith("decoder."):
            student.state_dict()[name].copy_(tensor)
    checkpoint.write(student.state_dict(), student.config, folder / "vae")
    return folder


def test_a_session_of_the_model_needs_no_latents_to_come(folders, tmp_path, capsys):
    words = ["convert", "swap-vae", folders / "model", folders / "vae", tmp_path / "out"]
    assert cli.main([str(w) for w in words]) == 0
    assert "whose decoder is causal" in capsys.readouterr().out
    before, after = (rest_fast.load(f, device="cpu") for f in (folders / "model", tmp_path / "out"))
    own, vae = after.state_dict(), TemporalVAE.from_pretrained(folders / "vae")
    for name, tensor in before.state_dict().items():
        want = vae.state_dict()[name[4:]] if name.startswith("vae.") else tensor
        assert torch.equal(own[name], want), name
    ahead = []
    for model in (before, after):
        with model.session(model.prepare(photo())) as session:
            ahead.append(session.lookahead_ms)
            session.push_audio(sound(16000, 0.96))
            session.end_segment()
            assert len(list(session.blocks())) == 3
    assert ahead[0] - ahead[1] == pytest.approx(320)


def test_other_latents_are_refused(folders, tmp_path):
    other = TemporalVAE.from_pretrained(folders / "vae")
    other.latents_std[3] *= 1.1
    checkpoint.write(other.state_dict(), other.config, tmp_path / "other")
    with pytest.raises(ConvertError, match=r"expected a VAE of the same latents as .*got one with another latents_std"):
        swap_vae(folders / "model", tmp_path / "other", tmp_path / "out")
    wider = TemporalVAE(dataclasses.replace(other.config, encoder_channels=(8, 16, 32, 32, 64)))
    checkpoint.write(wider.state_dict(), wider.config, tmp_path / "wider")
    with pytest.raises(ConvertError, match=r"got one with another encoder\."):
        swap_vae(folders / "model", tmp_path / "wider", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("what", ["vae", "model"])
def test_training_takes_the_decoder_that_is_given(folders, what):
    """A preset cannot know which release's decoder there will be; but it knows the latents."""
    found = checkpoint.read_vae_config(folders / what)
    config = training_preset("toy").with_vae(found)
    vae = found if what == "vae" else found.vae
    assert config.model.vae == vae and vae.timestep_conditioning
    assert dataclasses.replace(config, model=training_preset("toy").model) == training_preset("toy")
    other = dataclasses.replace(vae, latent_channels=16)
    assert training_preset("toy").with_vae(other) == training_preset("toy")


@pytest.mark.parametrize(
    "text, words",
    [
        ('{"kind": "conv"}', "expected a whole model, got a VAE alone"),
        ('{"model_type": "wav2vec2"}', "expected a checkpoint of this package, got transformers' wav2vec2"),
        ('{"_class_name": "AutoencoderKLLTXVideo"}', "got diffusers' AutoencoderKLLTXVideo: first rest-fast convert"),
    ],
)
def test_folders_that_are_mistaken_for_a_model(tmp_path, text, words):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(checkpoint.CheckpointError, match=words):
        rest_fast.load(tmp_path)
    with pytest.raises(checkpoint.CheckpointError, match="got none"):
        TemporalVAE.from_pretrained(tmp_path / "nowhere")
