"""The stage ``causal-decoder`` from a VAE to a VAE: it learns, goes on where it was stopped, and what it refuses."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from rest_fast import cli
from rest_fast.checkpoint import CheckpointError
from rest_fast.config import ConfigError, ConvVAEConfig, preset
from rest_fast.model import Model
from rest_fast.models.vae import TemporalVAE
from rest_fast.models.vae.ltx import ConvDecoder
from rest_fast.training import causal_decoder as subject
from rest_fast.training import chain
from rest_fast.training.causal_decoder import CausalDecoderError, causal_copy, merge_future_taps, save
from rest_fast.training.chain import TrainError
from rest_fast.training.config import TrainingConfig, read_config, training_preset
from rest_fast.training.loop import Trainer
from rest_fast.training.reports import read_log
from rest_fast.training.shards import Manifest, encoder_fingerprint
from tests.kit.clips import small, write_clips
from tests.kit.command import refused
from tests.kit.compare import assert_same_bits
from tests.kit.models import randomise
from tests.kit.teachers import RICH, teacher_of


def config_of(**changes) -> TrainingConfig:
    fields = {f"causal_decoder__{name}": value for name, value in changes.items()}
    return training_preset("toy").replace(precision="fp32", **fields)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """``data``, four clips; ``vae``, a teacher with everything; ``out``, what the stage made of it in a few steps."""
    place = tmp_path_factory.mktemp("causal")
    write_clips(place / "data", preset("toy"), 4, fields=["video"])
    (place / "vae").mkdir()
    subject.save(teacher_of(**RICH), place / "vae")
    run(place, place / "out")
    return place


def run(folder: Path, out: Path, config: TrainingConfig | None = None, **more) -> Path:
    more = {"vae": folder / "vae", "device": "cpu", **more}
    return chain.run("causal-decoder", config or training_preset("toy"), folder / "data", out, **more)


# -- what it makes


def test_it_learns(folder, tmp_path):
    """Over draws of the data the loss falls by 21 %, and the clip that was kept back is met better by 2 dB."""
    config = config_of(steps=24, rate=3e-3, warmup=2, latents=2, ema=0.5).replace(report_every=4, save_every=24)
    log = read_log(run(folder, tmp_path, config))
    course, levels = [line["teacher"] for line in log if "teacher" in line], [x["psnr"] for x in log if "psnr" in x]
    assert course[-1] < 0.9 * course[0]
    assert [line["step"] for line in log if "psnr" in line] == [0, 24] and levels[1] > levels[0] + 1


def test_only_the_decoder_is_another(folder):
    made = folder / "out" / "causal-decoder"
    beside = {"log.jsonl", "tensorboard", "teacher.sha256"}
    assert {p.name for p in made.iterdir()} == {"config.json", "model.safetensors", *beside}
    before, after = (load_file(place / "model.safetensors") for place in (folder / "vae", made))
    assert set(before) == set(after)
    for name, tensor in after.items():
        if not name.startswith("decoder."):
            assert_same_bits(tensor, before[name], name)
        assert tensor.isfinite().all() and tensor.dtype == torch.float32
    trained = teacher_of(**RICH).decoder
    merge_future_taps(trained)
    assert all(not torch.equal(after[f"decoder.{name}"], t) for name, t in trained.state_dict().items())
    configs = [ConvVAEConfig.from_json((place / "config.json").read_text()) for place in (folder / "vae", made)]
    assert configs[1] == dataclasses.replace(configs[0], causal_decoder=True) != configs[0]


def test_the_result_streams_without_delay(folder):
    vae = TemporalVAE.from_pretrained(folder / "out" / "causal-decoder", dtype=torch.float64)
    z = torch.randn(1, 8, 6, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    whole = vae.decode(z, mode="causal")
    assert whole.shape[2] == 41
    for plan in ([1] * 6, [1, 3, 2], [4, 2]):
        stream = vae.stream(mode="causal")
        made = [stream.decode(part) for part in z.split(plan, 2)]
        assert [m.shape[2] for m in made] == [8 * n - 7 * (i == 0) for i, n in enumerate(plan)]
        torch.testing.assert_close(torch.cat(made, 2), whole, rtol=0, atol=1e-12)
    with pytest.raises(ValueError, match="of this checkpoint is causal"):
        vae.stream(mode="lookahead(1)")


def test_the_vae_of_a_whole_checkpoint(folder, tmp_path):
    config = preset("toy").replace(vae__causal_decoder=False)
    model = Model(config)
    randomise(model.vae, 4)
    model.save(tmp_path / "model", torch.float32)
    made = run(folder, tmp_path / "out", config_of(steps=1), vae=tmp_path / "model")
    vae = TemporalVAE.from_pretrained(made)
    assert vae.causal and isinstance(vae.decoder, ConvDecoder)
    for name, tensor in model.vae.encoder.state_dict().items():
        assert_same_bits(vae.encoder.state_dict()[name], tensor, name)


def test_killed_and_resumed(folder, tmp_path, monkeypatch):
    """The weights and the log of the run that was not interrupted (bf16, all kinds of noise)."""
    step = Trainer._step

    def dies(self, *arguments):
        if self.step == 3:
            raise KeyboardInterrupt
        return step(self, *arguments)

    monkeypatch.setattr(Trainer, "_step", dies)
    with pytest.raises(KeyboardInterrupt):
        run(folder, tmp_path)
    assert chain.kept(tmp_path) == ["causal-decoder has the state of step 2"]
    monkeypatch.setattr(Trainer, "_step", step)
    with pytest.raises(TrainError, match="expected no causal-decoder there yet; --resume goes on with it"):
        run(folder, tmp_path)
    subject.save(teacher_of(2, **RICH), tmp_path / "other")
    with pytest.raises(CausalDecoderError, match="expected the VAE that it began with"):  # of a run that is done, too
        run(folder, folder / "out", vae=tmp_path / "other", resume=True)
    with pytest.raises(CausalDecoderError, match="expected the VAE that it began with, got another one"):
        run(folder, tmp_path, vae=tmp_path / "other", resume=True)
    with pytest.raises(TrainError, match=r"found another one in causal-decoder\.truth;"):
        run(folder, tmp_path, training_preset("toy").replace(causal_decoder__truth=0.2), resume=True)
    made = run(folder, tmp_path, resume=True)
    want, got = (load_file(place / "model.safetensors") for place in (folder / "out" / "causal-decoder", made))
    for name, tensor in want.items():
        assert_same_bits(got[name], tensor, name)
    logs = [read_log(place) for place in (folder / "out" / "causal-decoder", made)]
    assert [{**line, "step_seconds": 0} for line in logs[0]] == [{**line, "step_seconds": 0} for line in logs[1]]
    assert chain.kept(tmp_path) == ["causal-decoder is whole"]


@pytest.mark.slow
def test_two_processes(folder, tmp_path):
    """The weights of one process with twice the accumulated parts."""
    words = [
        "--nproc-per-node",
        "2",
        "--standalone",
        "-m",
        "rest_fast.cli",
        "train",
        "causal-decoder",
        "--config",
        "toy",
    ]
    words += ["--set", "precision=fp32", "--device", "cpu", "--data", folder / "data", "--vae", folder / "vae"]
    command = [sys.executable, "-m", "torch.distributed.run", *map(str, words), "--out", str(tmp_path / "two")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr
    one = run(folder, tmp_path / "one", config_of(accumulate=2))
    want, got = (load_file(place / "model.safetensors") for place in (one, tmp_path / "two" / "causal-decoder"))
    for name, tensor in want.items():
        torch.testing.assert_close(got[name], tensor, rtol=0, atol=1e-6, msg=name)


# -- what it refuses


def test_a_vae_to_begin_with(folder, tmp_path):
    for given in ({"vae": None}, {"init": folder / "vae"}, {"vae": None, "init": folder / "vae"}):
        with pytest.raises(
            TrainError, match="train causal-decoder: expected a VAE to begin with, --vae DIR and no --in"
        ):
            run(folder, tmp_path / "out", **given)
    with pytest.raises(
        CausalDecoderError, match=r"not causal \(causal_decoder false\), got one whose decoder is causal"
    ):
        run(folder, tmp_path / "out", vae=folder / "out" / "causal-decoder")
    with pytest.raises(CausalDecoderError, match=r"got one of kind motion, whose decoder is causal already"):
        chain.run("causal-decoder", config_of(), folder / "data", tmp_path / "out", vae="demo")
    with pytest.raises(CheckpointError, match=r"expected a folder with config\.json"):
        run(folder, tmp_path / "out", vae=folder / "data")
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn" / "config.json").write_text((folder / "vae" / "config.json").read_text())
    with pytest.raises(CheckpointError, match=r"torn: expected model\.safetensors"):
        run(folder, tmp_path / "out", vae=tmp_path / "torn")
    assert not (tmp_path / "out").exists()


def test_clips_that_fit(folder, tmp_path):
    def fails(says: str, data: Path, vae: Path = folder / "vae", **changes) -> None:
        with pytest.raises(ValueError, match=says):
            chain.run("causal-decoder", config_of(**changes), data, tmp_path / "out", vae=vae, device="cpu")
        assert not (tmp_path / "out").exists()

    fails("blind: expected clips with video", write_clips(tmp_path / "blind", small(), 2, fields=["latents"]))
    fails("at least 2 clips, one to measure on", write_clips(tmp_path / "single", small(), 1, fields=["video"]))
    wide = write_clips(tmp_path / "wide", preset("toy").replace(height=96), 2, fields=["video"])
    Model(preset("toy").replace(vae__causal_decoder=False)).save(tmp_path / "model")
    fails("wide: expected clips of 64 x 64 for this VAE, got 96 x 64", wide, tmp_path / "model")
    manifest = Manifest.load(wide)
    manifest.height = 80
    manifest.save(wide)
    fails("wide: expected clips of rows and columns divisible by 32 for this VAE, got 80 x 64", wide)


@pytest.mark.parametrize("change, says", [
    ("latents=1", "latents: expected at least 2, got 1"),
    ("latents=14", "latents: expected at most a clip's 13, got 14"),
    ("piece=0", "piece: expected at least 1, got 0"),
    ("truth=-1", "truth: expected at least 0, got -1"),
    ("start=shifted", "start: expected folded/unchanged, got 'shifted'"),
    ("sampled=1", "sampled: expected true or false, got 1"),
])  # fmt: skip
def test_numbers_that_make_no_training(change, says):
    with pytest.raises(ConfigError, match=f"CausalDecoderStage.{says}"):
        read_config("toy", [f"causal_decoder.{change}"])


def test_the_command(folder, tmp_path, capsys):
    words = ["--config", "toy", "--set", "causal_decoder.steps=1", "--device", "cpu", "--out", str(tmp_path)]
    words = ["train", "causal-decoder", "--data", str(folder / "data"), *words]
    refused(capsys, words, "expected a VAE to begin with, --vae DIR and no --init; got None")
    assert cli.main([*words, "--vae", str(folder / "vae")]) == 0
    assert f"done; {tmp_path / 'causal-decoder'} is a VAE" in capsys.readouterr().out
    assert TemporalVAE.from_pretrained(tmp_path / "causal-decoder").causal


def test_the_result_takes_the_place_of_the_vae_in_a_model(folder, tmp_path):
    """``--vae`` of the other stages takes it, and latents of the same encoder go on being valid."""
    student = causal_copy(TemporalVAE.from_pretrained(folder / "vae"), "folded")
    save(student, tmp_path)
    config = preset("toy").replace(vae=student.config)
    model = Model(config)
    chain.read_parts(model, tmp_path, "vae.")
    for name, tensor in student.state_dict().items():
        assert torch.equal(model.vae.state_dict()[name], tensor), name
    before = config.replace(vae__causal_decoder=False)
    of_teacher = encoder_fingerprint(TemporalVAE.from_pretrained(folder / "vae"))
    assert encoder_fingerprint(model.vae) == of_teacher
    with torch.no_grad():
        model.vae.encoder.conv_in.bias.add_(0.1)
    assert encoder_fingerprint(model.vae) != of_teacher
    with pytest.raises(ValueError, match=r"expected vae.causal_decoder False \(got True\)"):
        chain.read_parts(Model(before), tmp_path, "vae.")
