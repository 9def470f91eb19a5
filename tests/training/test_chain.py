"""The whole chain from a prepared folder to a checkpoint, killed and resumed, and what it refuses before any work."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import rest_fast
from rest_fast import media
from rest_fast.checkpoint import CheckpointError
from rest_fast.config import ConfigError
from rest_fast.model import Model
from rest_fast.models.vae import to_tokens
from rest_fast.training import chain, vae, vae_basis
from rest_fast.training.chain import STAGES, TrainError
from rest_fast.training.config import Stage, TrainingConfig, training_preset
from rest_fast.training.loop import Trainer
from rest_fast.training.reports import read_log
from rest_fast.training.shards import DataError, Shards
from tests.kit import toys
from tests.kit.clips import small, write_clips
from tests.kit.command import write_wav
from tests.kit.compare import assert_same_bits

FEW = {"steps": 3, "batch": 2, "accumulate": 1, "rate": 1e-3}


def config_of(kind: str) -> TrainingConfig:
    """Three steps a stage, a state after two of them."""
    config = training_preset("toy")
    steps = {f"{stage}__{name}": value for stage in STAGES for name, value in FEW.items()}
    config = config.replace(**steps, vae__mixer=Stage(**FEW), vae__pieces=1, speech__labels=1.0)
    return config if kind == "conv" else config.replace(model=small(), precision="fp32")


@pytest.fixture(scope="module", params=["conv", "basis"])
def whole(request, tmp_path_factory):
    """(configuration, data, OUT of an uninterrupted chain)."""
    folder, config = tmp_path_factory.mktemp(request.param), config_of(request.param)
    data = write_clips(folder / "data", config.model)
    assert chain.run("all", config, data, folder / "out", device="cpu") == folder / "out" / "asd"
    return config, data, folder / "out"


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    """(configuration, data without labels, a checkpoint of random weights): for runs of single stages."""
    folder = tmp_path_factory.mktemp("toy")
    config = config_of("conv").replace(speech__labels=0.0)
    toys.toy().save(folder / "model", torch.float32)
    fields = ("features", "video", "samples", "latents")
    data = write_clips(folder / "data", config.model, 3, fields=fields, vae=toys.toy())
    return config, data, folder / "model"


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


# -- from nothing to a model


def test_every_stage_leaves_a_checkpoint(whole):
    """Each learns its own parts of the model and leaves the others as they were."""
    config, _, out = whole
    torch.manual_seed(config.seed)
    before = Model(config.model).state_dict()
    for stage, parts in zip(STAGES, (["vae"], ["speech"], *[["dit", "speech"]] * 3)):
        files = {"config.json", "model.safetensors", "log.jsonl", "tensorboard"}
        if stage == "vae" and config.model.vae.kind == "basis":
            files |= {"basis.safetensors", "mixer"}
        assert {p.name for p in (out / stage).iterdir()} == files
        assert not list((out / stage).rglob("state"))
        assert [line["step"] for line in read_log(out / stage)] == [2, 3]
        after = weights(out / stage)
        changed = {name.split(".")[0] for name, t in after.items() if not torch.equal(t, before[name])}
        assert changed == set(parts)
        assert all(t.dtype == torch.float32 and t.isfinite().all() for t in after.values())
        before = after
    assert TrainingConfig.from_json((out / "config.json").read_text()) == config
    names = {"speech": "labels", "asd": "smooth", "teacher": "loss"}
    assert all(read_log(out / stage)[-1][name] > 0 for stage, name in names.items())


def test_the_result_renders(whole, tmp_path):
    config, _, out = whole
    model = rest_fast.load(out / "asd", device="cpu")
    assert model.config == config.model
    sound = write_wav(tmp_path / "s.wav", toys.sound(16_000, 0.5))
    done = rest_fast.render(model, model.prepare(toys.photo(), crop="center"), sound, tmp_path / "v.mp4")
    frames, _ = media.read_video(tmp_path / "v.mp4")
    assert done.frames == len(frames) == 13 and frames.std() > 1


def test_killed_in_every_stage(whole, tmp_path, monkeypatch):
    """In the last step of each: the resumed chain has the weights of the one that was never interrupted."""
    config, data, out = whole
    places = ["vae", "speech", "teacher", "student", "asd"]
    places = ["mixer", *places] if config.model.vae.kind == "basis" else places
    step = Trainer._step

    for place in places:

        def dies(self, *arguments, place=place):
            if self.folder.name == place and self.step == 2:
                raise KeyboardInterrupt
            return step(self, *arguments)

        monkeypatch.setattr(Trainer, "_step", dies)
        with pytest.raises(KeyboardInterrupt):
            chain.run("all", config, data, tmp_path, device="cpu", resume=True)
        stage = "vae" if place == "mixer" else place
        assert not (tmp_path / stage / "model.safetensors").exists()
    monkeypatch.setattr(Trainer, "_step", step)
    chain.run("all", config, data, tmp_path, device="cpu", resume=True)
    for stage in STAGES:
        want, got = weights(out / stage), weights(tmp_path / stage)
        for name, tensor in want.items():
            assert_same_bits(got[name], tensor, f"{stage}: {name}")


def test_what_is_done_is_not_done_again(whole, monkeypatch, caplog):
    config, data, out = whole

    def again(*_, **__):
        pytest.fail("a finished stage is done again")

    for place, name in ((Trainer, "run"), (vae, "train"), (vae_basis, "fit_basis"), (chain, "encode")):
        monkeypatch.setattr(place, name, again)
    written = {path: path.stat().st_mtime_ns for path in out.rglob("*.safetensors")}
    with caplog.at_level(logging.INFO, "rest_fast.training"):
        chain.run("all", config, data, out, device="cpu", resume=True)
    assert caplog.messages == [f"{stage}: done already" for stage in STAGES]
    assert written == {path: path.stat().st_mtime_ns for path in out.rglob("*.safetensors")}


def test_latents_are_those_of_the_trained_vae(whole):
    _, data, out = whole
    clips, latents = Shards(data, "train"), Shards(out / "latents")
    model = rest_fast.load(out / "vae", device="cpu")
    latents.require_encoder(model)
    assert len(latents) == len(clips) == 4
    for i in (0, 3):
        with torch.no_grad():
            want = to_tokens(model.vae.encode(clips.pixels(i)[None]))[0].half()
        torch.testing.assert_close(latents.read("latents", [i])[0], want, rtol=0, atol=2e-3)  # fp16 of numbers near 2


# -- with what a stage begins


def begun(stage: str, toy, out: Path, monkeypatch, **given) -> dict[str, torch.Tensor]:
    """The model's weights at the beginning of a stage; nothing is trained."""
    config, data, _ = toy
    found = {}

    def leave(name, model, *_, **__):
        found.update({k: v.clone() for k, v in model.state_dict().items()})
        raise KeyboardInterrupt

    monkeypatch.setattr(chain, "_train_flow", leave)
    monkeypatch.setattr(chain.vae_stage, "train", lambda model, *_, **__: leave("vae", model))
    monkeypatch.setattr(chain, "Speech", lambda model, *_: leave("speech", model))
    with pytest.raises(KeyboardInterrupt):
        chain.run(stage, config, data, out, device="cpu", resume=True, **given)
    monkeypatch.undo()
    return found


def put(model: Model, folder: Path) -> dict[str, torch.Tensor]:
    model.save(folder, torch.float32)
    return model.state_dict()


def agree(got: dict, *sources: tuple[str, dict]) -> None:
    """Every tensor is that of the first source whose prefix it has."""
    for name, tensor in got.items():
        want = next(source for prefix, source in sources if name.startswith(prefix))
        assert_same_bits(tensor, want[name], name)


def test_vae_and_init_take_what_they_say(toy, tmp_path, monkeypatch):
    config, _, given = toy
    torch.manual_seed(config.seed)
    fresh, model = Model(config.model).state_dict(), weights(given)
    agree(begun("all", toy, tmp_path / "a", monkeypatch), ("", fresh))
    agree(begun("all", toy, tmp_path / "b", monkeypatch, vae=given), ("vae.", model), ("", fresh))
    agree(begun("all", toy, tmp_path / "c", monkeypatch, init=given), ("", model))
    assert [p.name for p in (tmp_path / "b").iterdir()] == ["config.json"]  # speech came first
    speech = put(toys.toy(seed=5), tmp_path / "d" / "speech")
    agree(begun("teacher", toy, tmp_path / "d", monkeypatch), ("", speech))
    agree(begun("teacher", toy, tmp_path / "d", monkeypatch, vae=given), ("vae.", model), ("", speech))
    agree(begun("teacher", toy, tmp_path / "d", monkeypatch, init=given), ("", model))
    agree(begun("all", toy, tmp_path / "d", monkeypatch, init=given), ("", speech))  # whose first stage is done
    teacher = put(toys.toy(seed=6), tmp_path / "d" / "teacher")
    agree(begun("student", toy, tmp_path / "d", monkeypatch), ("", teacher))
    student = put(toys.toy(seed=7), tmp_path / "d" / "student")
    agree(begun("asd", toy, tmp_path / "d", monkeypatch), ("", student))


def test_init_takes_as_much_as_there_is(toy, tmp_path, monkeypatch, caplog):
    """A model without text attention lends the rest; half a VAE is none."""
    config, _, _ = toy
    lender = put(toys.toy(dit__text_tokens=0), tmp_path / "lender")
    torch.manual_seed(config.seed)
    fresh = Model(config.model).state_dict()
    with caplog.at_level(logging.INFO, "rest_fast.training"):
        got = begun("all", toy, tmp_path / "out", monkeypatch, init=tmp_path / "lender")
    for name, tensor in got.items():
        assert_same_bits(tensor, lender.get(name, fresh[name]), name)
    missing = len(set(fresh) - set(lender))
    assert missing > 10 and f"{missing} tensors are not in it and begin anew" in caplog.text
    put(toys.basis_model(), tmp_path / "basis")
    with pytest.raises(TrainError, match=r"basis/config\.json: a checkpoint of another configuration: expected vae\."):
        run("speech", toy, tmp_path / "other", vae=tmp_path / "basis")
    put(toys.toy(dit__heads=4), tmp_path / "wide")
    with pytest.raises(TrainError, match=r"wide/config\.json: .* another configuration: expected dit\.heads 2 "):
        run("speech", toy, tmp_path / "third", init=tmp_path / "wide")


# -- refusals


def run(stage: str, toy, out: Path, **given):
    config, data, _ = toy
    changed = given.pop("config", config), given.pop("data", data)
    return chain.run(stage, *changed, out, device="cpu", **given)


def test_words_that_make_no_run(toy, tmp_path):
    out = tmp_path / "out"
    stages = "vae, speech, teacher, student, asd, causal-decoder or all"
    with pytest.raises(TrainError, match=f"expected one of {stages}, got 'bake'"):
        run("bake", toy, out)
    with pytest.raises(TrainError, match="init, vae: expected one of them, got both"):
        run("all", toy, out, init="demo", vae="demo")
    with pytest.raises(CheckpointError, match="expected a folder, 'demo' or a hub id"):
        run("all", toy, out, vae="nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(TrainError, match=r"empty: expected a folder with config\.json and model\.safetensors"):
        run("all", toy, out, vae=tmp_path / "empty")
    with pytest.raises(DataError, match=r"none: expected prepared clips with manifest\.json"):
        run("all", toy, out, data=tmp_path / "none")
    assert not out.exists()


def test_a_stage_does_not_begin_with_random_parts(toy, tmp_path):
    """A random VAE, speech encoder or teacher would stay in the model, and nobody would know."""
    with pytest.raises(TrainError, match=r"train speech: expected .*vae or --vae MODEL, .*, found neither"):
        run("speech", toy, tmp_path)
    for stage, needed in (("teacher", "speech"), ("student", "teacher")):
        for given in ({}, {"vae": toy[2]}):
            with pytest.raises(TrainError, match=rf"{needed}: expected the result of the stage {needed}, found none"):
                run(stage, toy, tmp_path, **given)


def test_asd_needs_its_teacher_and_its_student(toy, tmp_path):
    """A teacher alone is no student."""
    given = toy[2]
    with pytest.raises(TrainError, match="teacher: expected the result of the stage teacher, found none"):
        run("asd", toy, tmp_path, vae=given)
    put(toys.toy(), tmp_path / "teacher")
    with pytest.raises(TrainError, match="student: expected the result of the stage student, found none"):
        run("asd", toy, tmp_path, vae=given)


def test_a_folder_belongs_to_one_training(toy, tmp_path):
    config, _, given = toy
    run("speech", toy, tmp_path, vae=given)
    with pytest.raises(TrainError, match=r"expected no speech there yet; --resume goes on with it"):
        run("speech", toy, tmp_path, vae=given)
    with pytest.raises(TrainError, match=r"config\.json: expected this training's configuration, found another one"):
        run("speech", toy, tmp_path, vae=given, config=config.replace(seed=1), resume=True)
    before = weights(tmp_path / "speech")
    assert run("speech", toy, tmp_path, vae=given, resume=True) == tmp_path / "speech"
    assert all(torch.equal(t, before[name]) for name, t in weights(tmp_path / "speech").items())
    (tmp_path / "speech" / "config.json").unlink()  # killed between the two files: not done
    (tmp_path / "speech" / "log.jsonl").unlink()
    run("speech", toy, tmp_path, vae=given, resume=True)
    assert all(torch.equal(t, before[name]) for name, t in weights(tmp_path / "speech").items())
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ConfigError, match=r"config\.json: training config is not JSON"):
        run("speech", toy, tmp_path, vae=given, resume=True)


def test_how_it_is_computed_may_change_and_what_may_not(toy, tmp_path):
    """Processes, reports and stages to come are no part of what has been trained."""
    config, _, given = toy
    run("speech", toy, tmp_path, vae=given)
    other = config.replace(parallel="shard", save_every=7, checkpointing=True, speech__accumulate=2, teacher__steps=9)
    run("speech", toy, tmp_path, vae=given, config=other, resume=True)
    with pytest.raises(TrainError, match=r"found another one in speech\.steps;"):
        run("speech", toy, tmp_path, vae=given, config=config.replace(speech__steps=9), resume=True)


def test_a_student_keeps_its_teacher_s_vae(toy, tmp_path):
    put(toys.toy(seed=6), tmp_path / "teacher")
    put(toys.toy(seed=8), tmp_path / "other")
    with pytest.raises(TrainError, match=r"other: expected the VAE whose latents .*teacher was trained on"):
        run("student", toy, tmp_path, vae=tmp_path / "other")


def test_stages_of_one_length_draw_their_own(toy):
    config, data, _ = toy
    clips = Shards(data, "train")
    draws = [
        chain.FlowData(config, clips, clips, 2, chain.stage_seed(config.seed, name))(0, range(2))
        for name in ("teacher", "student", "student")
    ]
    assert not torch.equal(draws[0].noise, draws[1].noise) and not torch.equal(draws[0].t, draws[1].t)
    assert torch.equal(draws[1].noise, draws[2].noise)


def test_latents_of_other_clips_are_refused(toy, tmp_path):
    """As many clips, but not these: each would hear another one's sound."""
    config, _, given = toy
    model, world = rest_fast.load(given, device="cpu"), chain.World()
    fields = ("features", "video")
    one, two = (
        Shards(write_clips(tmp_path / name, config.model, 2, fields=fields, seed=seed), "train")
        for seed, name in enumerate("ab")
    )
    chain.find_latents(model, one, tmp_path / "out", world)
    assert chain.find_latents(model, one, tmp_path / "out", world).manifest.of == one.digest
    with pytest.raises(DataError, match=r"latents: expected latents of .*b, got those of other clips; remove"):
        chain.find_latents(model, two, tmp_path / "out", world)


def test_data_that_a_stage_cannot_use(toy, tmp_path):
    config, data, given = toy
    for stage, there in (("vae", "features"), ("speech", "video"), ("student", "latents")):
        folder = write_clips(tmp_path / there, config.model, 2, fields=[there])
        missing = {"vae": "video"}.get(stage, "features")
        needs = {"vae": {}, "speech": {"vae": given}, "student": {"init": given}}[stage]
        if stage == "student":
            manifest = json.loads((folder / "manifest.json").read_text())
            manifest["vae"] = json.loads((data / "manifest.json").read_text())["vae"]
            (folder / "manifest.json").write_text(json.dumps(manifest))
        with pytest.raises(DataError, match=rf"expected clips with {missing}, found \['{there}'\]"):
            run(stage, toy, tmp_path / f"out_{stage}", data=folder, **needs)
    with pytest.raises(DataError, match=r"features of another configuration: expected speech.tokens 4 \(got 2\)"):
        run("speech", toy, tmp_path / "other", init=None, vae=given, config=config.replace(model__speech__tokens=4))
    unlabelled = Shards(write_clips(tmp_path / "film", config.model, 2, fields=["features", "video"]), "train")
    wanted = config.replace(speech__labels=1.0)
    assert chain.without_labels(wanted, unlabelled) == config.replace(speech__labels=0.0)
    drawn = Shards(write_clips(tmp_path / "drawn", config.model, 2), "train")
    assert chain.without_labels(wanted, drawn) == wanted


def test_latents_of_another_vae(toy, tmp_path, caplog):
    """Those of the data are used if they are of this VAE; else the video is encoded; else the training is refused."""
    config, data, given = toy
    clips, own = Shards(data, "train"), rest_fast.load(given, device="cpu")
    world = chain.World()
    assert chain.find_latents(own, clips, tmp_path / "a", world) is clips and not (tmp_path / "a").exists()
    other = toys.toy(seed=3)
    with caplog.at_level(logging.INFO, "rest_fast.training"):
        made = chain.find_latents(other, clips, tmp_path / "b", world)
    assert made.folder == tmp_path / "b" / "latents" and "3 clips through the VAE" in caplog.text
    assert not torch.equal(made.read("latents", [0]), clips.read("latents", [0]))
    fields = ("features", "latents")
    blind = Shards(write_clips(tmp_path / "blind", config.model, 2, fields=fields, vae=own), "train")
    assert chain.find_latents(own, blind, tmp_path / "c", world) is blind
    with pytest.raises(DataError, match=r"manifest\.json: expected latents of this model's VAE, got those of another"):
        chain.find_latents(other, blind, tmp_path / "c", world)
    with pytest.raises(DataError, match=r"latents/manifest\.json: expected latents of this model's VAE"):
        chain.find_latents(toys.toy(seed=4), clips, tmp_path / "b", world)  # a folder of another VAE's


# -- samples


def test_samples_of_a_stage_play(toy, tmp_path):
    """A video of what the averages say at this step, of the first clip's sound and photo."""
    config, data, given = toy
    config = config.replace(sample_every=2)
    run("student", toy, tmp_path, init=given, config=config)
    videos = sorted((tmp_path / "student" / "samples").iterdir())
    assert [path.name for path in videos] == ["step_00000002.mp4", "step_00000003.mp4"]
    shown = [media.read_video(path)[0] for path in videos]
    assert all(frames.shape[1:] == (64, 64, 3) and len(frames) >= 96 for frames in shown)
    assert not np.array_equal(*shown)
    sound = media.load_audio(videos[0])
    assert len(sound.samples) / sound.rate == pytest.approx(4, abs=0.1)  # AAC pads
    model = rest_fast.load(tmp_path / "student", device="cpu")
    chain.sampler(model, Shards(data, "train"), tmp_path / "again", chain.World())(3)
    again, _ = media.read_video(tmp_path / "again" / "samples" / "step_00000003.mp4")
    assert np.abs(again.astype(int) - shown[1]).mean() < 1  # the last sample is of what the stage hands on


def test_data_without_sound_gives_no_samples(toy, tmp_path):
    clips = Shards(write_clips(tmp_path, toy[0].model, 2, fields=["features", "video"]), "train")
    assert chain.sampler(toys.toy(), clips, tmp_path, chain.World()) is None
