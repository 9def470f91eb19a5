"""The configuration of a training: the paper's numbers, the round trip through JSON, and what is refused."""

from __future__ import annotations

import dataclasses
import json

import pytest

from rest_fast.config import ConfigError, ModelConfig, preset
from rest_fast.training.config import PRESETS, ASDStage, Stage, TrainingConfig, VAEStage, read_config, training_preset


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_round_trip(name, tmp_path):
    config = training_preset(name)
    assert TrainingConfig.from_json(config.to_json()) == config == read_config(name)
    path = tmp_path / "own.json"
    path.write_text(config.replace(seed=3, asd__smooth=0.0).to_json())
    again = read_config(str(path))
    assert (again.seed, again.asd.smooth) == (3, 0.0) and again != config
    assert again.replace(seed=config.seed, asd__smooth=config.asd.smooth) == config
    assert again.model == config.model and isinstance(again.model, ModelConfig)


def test_the_paper_s_numbers_are_the_defaults():
    config = TrainingConfig(preset("rest-512"))
    assert config.speech.rate == 1e-4
    for stage in (config.teacher, config.student, config.asd):
        assert (stage.rate, stage.batch, stage.accumulate) == (1e-5, 4, 4)
    assert (config.speech.reconstruction, config.speech.contrastive) == (10, 1)
    assert (config.asd.contrastive, config.asd.smooth, config.asd.temperature) == (0.2, 0.2, 0.1)
    lost = config.corruption
    assert (lost.reference, lost.audio, lost.both, lost.synchronous) == (0.1, 0.1, 0.1, 0.5)
    sampling = config.model.sampling
    assert (sampling.train_mu, sampling.train_sigma, sampling.steps, sampling.guidance) == (2.05, 1.0, 8, 6.0)
    assert lost.mouth == 1 and config.student.cache_gradient and config.student.self_rollout == 0  # none of ours
    shipped = training_preset("rest-512")
    assert shipped == config.replace(checkpointing=True)


def test_what_is_left_out_has_its_default():
    config = TrainingConfig.from_json('{"model": "toy", "asd": {"smooth": 0}, "vae": {"mixer": {"steps": 7}}}')
    assert config.model == preset("toy")
    assert config.asd == dataclasses.replace(ASDStage(), smooth=0)
    assert config.vae.mixer == dataclasses.replace(VAEStage().mixer, steps=7) != Stage(steps=7)  # the mixer's own


def test_a_whole_model_in_a_training():
    model = preset("toy").replace(stream__sink=False, height=96)
    text = json.dumps({"model": json.loads(model.to_json())})
    assert TrainingConfig.from_json(text).model == model


def test_changes_of_the_command_line(tmp_path):
    changes = ["asd.smooth=0.1", "model.stream.sink=false", "vae.mixer.steps=9", "parallel=shard", "model.name=other"]
    config = read_config("toy", changes)
    want = training_preset("toy").replace(asd__smooth=0.1, parallel="shard", model__stream__sink=False)
    want = want.replace(model__name="other", vae__mixer=dataclasses.replace(want.vae.mixer, steps=9))
    assert config == want
    path = tmp_path / "c.json"
    path.write_text('{"model": "toy"}')
    assert read_config(str(path), ["seed=5", "seed=6"]).seed == 6
    assert read_config("toy", ["model=demo"]).model == preset("demo")


@pytest.mark.parametrize("change", ["asd.smooth", "asd.smoth=1", "adsl.smooth=1", "seed.deep=1", "=1", "asd.=1"])
def test_changes_of_nothing_are_refused(change):
    with pytest.raises(ConfigError, match=r"set.*: expected (PATH=VALUE|one of \[)"):
        read_config("toy", [change])


REFUSED = [
    ("teacher.steps=0", "TeacherStage.steps: expected at least 1, got 0"),
    ("teacher.rate=0", "TeacherStage.rate: expected positive"),
    ("teacher.rate=NaN", "TeacherStage.rate: expected a finite number"),
    ("teacher.rate=fast", "TeacherStage.rate: expected a finite number, got 'fast'"),
    ("teacher.weight_decay=-0.1", "TeacherStage.weight_decay: expected at least 0"),
    ("speech.accumulate=4", "SpeechStage.batch: expected a multiple of 4, got 2"),
    ("student.ema=1", "StudentStage.ema"),
    ("student.constant=1.1", r"StudentStage.constant: expected a number in 0..1"),
    ("student.self_rollout=1.5", r"StudentStage.self_rollout: expected a number in 0..1"),
    ("student.cache_gradient=1", "StudentStage.cache_gradient: expected true or false, got 1"),
    ("asd.temperature=0", "ASDStage.temperature: expected positive"),
    ("asd.smooth=-1", "ASDStage.smooth: expected at least 0"),
    ("vae.kl=-1", "VAEStage.kl: expected at least 0"),
    ("vae.mixer=5", "training config.vae.mixer: expected an object, got 5"),
    ("vae.mixer.clip=0", "Stage.clip: expected positive"),
    ("corruption.audio=1.5", "corruption.audio: expected a number in 0..1"),
    ("corruption.audio=0.9", "shares of reference, audio and both of at most 1 together, got 1.1"),
    ("corruption.mouth=0", "corruption.mouth: expected positive"),
    ("precision=fp16", "training.precision: expected bf16/fp32, got 'fp16'"),
    ("parallel=tensor", "training.parallel: expected replicate/shard"),
    ("seed=-1", "training.seed: expected at least 0"),
    ("seed=4294967296", r"training.seed: expected less than 2\^32"),
    ("keep=0", "training.keep: expected at least 1"),
    ("model.stream.chunk=5", "stream.chunk: expected a divisor of a clip's 12 latents, got 5"),
    ("model.dit.heads=0", "dit.heads"),
    ("model=tiny", "preset: expected one of"),
]


@pytest.mark.parametrize("change, says", REFUSED)
def test_values_that_make_no_training(change, says):
    with pytest.raises(ConfigError, match=says):
        read_config("toy", [change])


@pytest.mark.parametrize("text, says", [
    ("{", "training config is not JSON"),
    ("[1]", "training config: expected an object"),
    ("{}", "a field model"),
    ('{"model": "toy", "teachers": {}}', r"expected fields \[.*'teacher'.*\], got \['teachers'\]"),
    ('{"model": "toy", "teacher": {"step": 1}}', r"training config.teacher: expected fields .*got \['step'\]"),
    ('{"model": 5}', "expected a JSON object, got int"),
])  # fmt: skip
def test_files_that_are_no_configuration(tmp_path, text, says):
    path = tmp_path / "c.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=rf"c\.json: .*{says}"):
        read_config(str(path))


def test_names_of_no_configuration(tmp_path):
    for name in ("tiny", str(tmp_path)):
        with pytest.raises(ConfigError, match=r"expected a file or one of \['demo', 'drawn', 'rest-512', 'toy'\], got"):
            read_config(name)
    with pytest.raises(ConfigError, match=r"training preset: expected one of .*, got 'tiny'"):
        training_preset("tiny")
