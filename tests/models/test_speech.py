"""Speech features and SpeechAE: against transformers and numpy, and sample-exact statements about what is seen."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from rest_fast.config import SpeechConfig, preset
from rest_fast.models.speech import (
    FRAME,
    RATE,
    LogMel,
    SpeechAE,
    SpeechDecoder,
    SpeechEncoder,
    WhisperFeatures,
    WhisperMel,
    mel_filters,
    slaney_filters,
    speech_features,
)
from tests.kit.models import F64, randomise

CONFIG = preset("demo").speech
SIDE = 80 * RATE // 1000  # samples of sound on either side of a frame
EDGE = 120  # 7.5 ms: half of what a 25 ms window is longer than its 10 ms hop


def sound(samples: int, seed: int = 0) -> torch.Tensor:
    """Noise, a tone and a silent stretch, [1, samples] fp32."""
    g = torch.Generator().manual_seed(seed)
    time = torch.arange(samples) / RATE
    wave = 0.1 * torch.randn(samples, generator=g) + 0.3 * torch.sin(2 * torch.pi * 440 * time)
    wave[samples // 3 : samples // 3 + 900] = 0
    return wave[None]


# -- log-mel


@pytest.mark.parametrize("bands", [80, 40])
def test_filters_against_transformers(bands):
    audio = pytest.importorskip("transformers.audio_utils")
    want = audio.mel_filter_bank(
        num_frequency_bins=513,
        num_mel_filters=bands,
        min_frequency=0,
        max_frequency=8000,
        sampling_rate=RATE,
        norm=None,
        mel_scale="htk",
    )
    got = mel_filters(bands)
    assert got.shape == (bands, 513)
    assert (got.sum(1) > 0).all()  # no band falls between two bins
    np.testing.assert_allclose(got.numpy(), want.T, atol=2e-7)  # one rounding to float32 of numbers up to 1


def plain_logmel(samples: np.ndarray, frames: int, config: SpeechConfig, filters: np.ndarray) -> np.ndarray:
    """[n, positions, bands] in float64: each position an explicit sum over its 400 samples."""
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(400) / 400)
    bins = np.exp(-2j * np.pi * np.outer(np.arange(513), np.arange(400)) / 1024)
    out = np.zeros((frames, config.positions, config.channels))
    for frame in range(frames):
        for p in range(config.positions):
            hop = SIDE + EDGE + frame * 640 + (p - 8) * 160  # 8 positions of past, 4 of its own, 8 of future
            piece = samples[hop + 80 - 200 : hop + 80 + 200] * window  # centred on the hop
            mel = filters @ np.abs(bins @ piece) ** 2
            out[frame, p] = np.log10((mel + 1e-4) / 1e-4) / 3
    return out


def test_logmel_against_numpy():
    features = LogMel(CONFIG)
    assert (features.back, features.ahead) == (SIDE + EDGE, SIDE + EDGE)
    samples = sound(features.back + 3 * FRAME + features.ahead)
    got = features(samples)
    assert got.dtype == torch.float32 and got.shape == (1, 3, 20, 80)
    want = plain_logmel(samples[0].double().numpy(), 3, CONFIG, mel_filters(80).double().numpy())
    assert want.max() > 1 and want.min() < 0.05
    # float32 transform: power to 1e-6 of the loudest bin (about 2e3), seen through d log10(x + 1e-4) / 3: in a quiet
    # band next to a loud one that is the error; where everything is quiet it is far smaller
    np.testing.assert_allclose(got[0].numpy(), want, atol=2e-4)
    assert np.abs(got[0].numpy() - want).mean() < 2e-6


def test_loudness_scale():
    """Ten times the amplitude is 2/3 more, once well above the floor."""
    features = LogMel(CONFIG)
    samples = sound(features.back + FRAME + features.ahead).clamp(-1, 1)
    difference = features(10 * samples) - features(samples)
    loud = features(samples) > 1
    assert loud.sum() > 50
    torch.testing.assert_close(difference[loud], torch.full((int(loud.sum()),), 2 / 3), rtol=0, atol=1e-3)


def test_silence_is_the_zero_vector():
    features = LogMel(CONFIG)
    assert (features(torch.zeros(2, features.back + 5 * FRAME + features.ahead)) == 0).all()


def changed_frames(features, samples: torch.Tensor, at: slice, value: float) -> list[int]:
    other = samples.clone()
    other[:, at] += value
    return (features(other) != features(samples)).flatten(2).any(-1)[0].nonzero().flatten().tolist()


def test_exact_look_ahead_and_history():
    """Frame i sees 80 + 7.5 ms on either side and not a sample more: digital equality beyond, a difference within."""
    features = LogMel(CONFIG)
    n = 9
    samples = sound(features.back + n * FRAME + features.ahead)
    for frame in range(n):
        start, end = features.back + frame * FRAME, features.back + (frame + 1) * FRAME
        after, before = end + SIDE + EDGE, start - SIDE - EDGE
        # 1e4 on one sample: the window's outermost weight is 6e-5, so less could drown
        if after < samples.shape[1]:
            assert frame not in changed_frames(features, samples, slice(after, None), 1e4)
        assert frame in changed_frames(features, samples, slice(after - 1, after), 1e4)
        if before > 0:
            assert frame not in changed_frames(features, samples, slice(0, before), 1e4)
        assert frame in changed_frames(features, samples, slice(before, before + 2), 1e4)  # weight 0 is 0


def test_a_run_of_frames_is_its_frames():
    """Fixed windows: cut any way, the features are the same (matrix products of other shapes: float32 roundings)."""
    features = LogMel(CONFIG)
    n = 12
    samples = sound(features.back + n * FRAME + features.ahead, 5)
    whole = features(samples)
    for first, count in [(i, 1) for i in range(n)] + [(0, 5), (3, 8), (11, 1)]:
        a = first * FRAME
        part = features(samples[:, a : a + features.back + count * FRAME + features.ahead])
        torch.testing.assert_close(part, whole[:, first : first + count], rtol=0, atol=2e-5)


@pytest.mark.parametrize("count", [-1, 0, 1, FRAME - 1, FRAME + 1])
def test_wrong_count_of_samples(count):
    features = LogMel(CONFIG)
    with pytest.raises(ValueError, match=r"samples: expected \[B, 1400 \+ 640 n \+ 1400\]"):
        features(torch.zeros(1, features.back + features.ahead + count))
    with pytest.raises(ValueError, match="samples"):
        features(torch.zeros(features.back + features.ahead + FRAME))


# -- Whisper


@pytest.fixture(scope="module")
def whisper():
    """whisper-tiny's shape with random weights."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.WhisperConfig(
        decoder_layers=1, vocab_size=100, pad_token_id=0, bos_token_id=1, eos_token_id=2
    )
    assert (config.d_model, config.encoder_layers, config.encoder_attention_heads) == (384, 4, 6)
    model = transformers.WhisperModel(config).eval()
    for name, parameter in model.encoder.named_parameters():  # the default's 0.02 leaves layers nearly idle
        if parameter.ndim == 2 and "positions" not in name:
            torch.nn.init.normal_(parameter, std=0.05)
    return model


def test_whisper_against_transformers(whisper):
    """Windows cut by hand from the hidden states that go from layer to layer and, normed, out of the encoder."""
    config = preset("rest-512").speech
    features = speech_features(config, whisper)
    assert isinstance(features, WhisperFeatures)
    assert (features.back, features.ahead) == (4 * RATE, 80 * RATE // 1000)
    frames = 24
    samples = sound(features.back + frames * FRAME + features.ahead)
    states, hooks = [], []
    for layer in whisper.encoder.layers:
        hooks.append(layer.register_forward_pre_hook(lambda _, args: states.append(args[0].detach())))
    hooks.append(whisper.encoder.layer_norm.register_forward_hook(lambda _, __, out: states.append(out.detach())))
    got = features(samples)
    for hook in hooks:
        hook.remove()
    assert got.dtype == torch.float32 and got.shape == (1, frames, 10, 1920)
    assert len(states) == 5
    everything = torch.cat(states, -1)[0]
    for frame in range(frames):
        middle = (features.back + frame * FRAME) // 320  # 50 positions a second
        torch.testing.assert_close(got[0, frame], everything[middle - 4 : middle + 6])


@pytest.mark.parametrize("bands", [80, 128])
def test_whisper_filters_against_transformers(bands):
    audio = pytest.importorskip("transformers.audio_utils")
    scale = {"sampling_rate": RATE, "norm": "slaney", "mel_scale": "slaney", "max_frequency": 8000}
    want = audio.mel_filter_bank(num_frequency_bins=201, num_mel_filters=bands, min_frequency=0, **scale)
    np.testing.assert_allclose(slaney_filters(bands).numpy(), want.T, rtol=1e-6, atol=1e-9)  # one rounding to float32


def plain_whisper_mel(samples: np.ndarray, bands: int) -> np.ndarray:
    """[bands, 3000] in float64: each position an explicit sum over 400 samples, mirrored at both ends of 30 s."""
    sound = np.pad(np.pad(samples, (0, 480_000 - len(samples))), 200, mode="reflect")
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(400) / 400)
    bins = np.exp(-2j * np.pi * np.outer(np.arange(201), np.arange(400)) / 400)
    power = np.stack([np.abs(bins @ (sound[160 * t : 160 * t + 400] * window)) ** 2 for t in range(3000)], 1)
    mel = np.log10(np.maximum(slaney_filters(bands).double().numpy() @ power, 1e-10))
    return (np.maximum(mel, mel.max() - 8) + 4) / 4


LENGTHS = [400, 16_000, 5 * RATE + 77, 480_000 - 560, 480_000 - 399, 480_000]  # the last ones: no silence is left over


@pytest.mark.parametrize("count", LENGTHS)
def test_whisper_mel_by_hand_and_by_transformers(count):
    samples = sound(count, 3)
    got = WhisperMel(80)(samples)
    assert got.shape == (1, 80, 3000) and got.dtype == torch.float32
    # Loud and silent positions, and bands eight decades below the loudest: float32 shows there, by up to 1e-3 of log10.
    want = plain_whisper_mel(samples[0].double().numpy(), 80)
    np.testing.assert_allclose(got[0].numpy(), want, atol=3e-4)
    assert np.abs(got[0].numpy() - want).mean() < 2e-6
    transformers = pytest.importorskip("transformers")
    extract = transformers.WhisperFeatureExtractor()
    theirs = extract(samples[0].numpy(), sampling_rate=RATE, return_tensors="pt").input_features
    torch.testing.assert_close(got, theirs, rtol=0, atol=3e-4)
    assert (got - theirs).abs().mean() < 2e-6


def test_whisper_mel_of_a_batch_and_of_silence():
    """Each sound has a loudest band of its own; of silence all bands are the floor."""
    samples = torch.cat([sound(RATE, 1), 0.01 * sound(RATE, 2), torch.zeros(1, RATE)])
    together = WhisperMel(80)(samples)
    for i in range(3):
        torch.testing.assert_close(together[i : i + 1], WhisperMel(80)(samples[i : i + 1]), rtol=0, atol=1e-5)
    assert (together[2] == -1.5).all()  # (log10(1e-10) + 4) / 4


def test_whisper_mel_refuses_more_than_half_a_minute():
    with pytest.raises(AssertionError, match="expected at most 480000 samples, got 480001"):
        WhisperMel(80)(torch.zeros(1, 480_001))


def test_features_leave_no_device(whisper, monkeypatch):
    """From samples to features nothing asks for numpy or for another device: checked on one that holds no numbers."""

    def leave(self, *args, **kwargs):
        raise AssertionError("the features left their device")

    for features, channels in (
        (speech_features(CONFIG), CONFIG.channels),
        (WhisperFeatures(preset("rest-512").speech, copy.deepcopy(whisper).to("meta")), 1920),
    ):
        samples = torch.zeros(1, features.back + 2 * FRAME + features.ahead, device="meta")
        with monkeypatch.context() as patch:
            patch.setattr(torch.Tensor, "cpu", leave)
            patch.setattr(torch.Tensor, "numpy", leave)
            got = features(samples)
        assert got.device.type == "meta" and got.shape[-1] == channels


def test_constants_are_copied_once():
    features = LogMel(CONFIG)
    device = torch.device("meta")
    first = features.constants.on(device)
    assert all(a is b for a, b in zip(first, features.constants.on(device), strict=True))
    assert all(tensor.device == device and not tensor.is_inference() for tensor in first)


def test_whisper_hears_what_transformers_makes_of_the_samples(whisper):
    transformers = pytest.importorskip("transformers")
    features = speech_features(preset("rest-512").speech, whisper)
    samples = sound(features.back + 2 * FRAME + features.ahead)
    mel = transformers.WhisperFeatureExtractor()(samples[0].numpy(), sampling_rate=RATE, return_tensors="pt")
    with torch.no_grad():
        last = whisper.encoder(mel.input_features).last_hidden_state
    got = features(samples)[0, 1, :, -384:]
    middle = (features.back + FRAME) // 320
    torch.testing.assert_close(got, last[0, middle - 4 : middle + 6], rtol=1e-4, atol=1e-4)  # batch of one: float32


def test_whisper_missing():
    with pytest.raises(ValueError, match=r"(?=.*speech\.features)(?=.*WhisperModel)(?=.*rest_fast\[whisper\])"):
        speech_features(preset("rest-512").speech)


# -- SpeechAE


def encoder() -> SpeechEncoder:
    module = SpeechEncoder(CONFIG).double()
    randomise(module, 4)
    return module.requires_grad_(False)


def windows(frames: int, batch: int = 1) -> torch.Tensor:
    g = torch.Generator().manual_seed(frames)
    return torch.randn(batch, frames, CONFIG.positions, CONFIG.channels, generator=g, dtype=F64)


@pytest.mark.parametrize("k", [1, 2, 5])
def test_encoder_shapes(k):
    assert encoder()(windows(8 * (k + 1), 2)).shape == (2, k, CONFIG.tokens, CONFIG.width)


@pytest.mark.parametrize("frames", [0, 8, 7, 12, 23])
def test_encoder_refuses(frames):
    with pytest.raises(ValueError, match=rf"8 \(k \+ 1\) frames.*{frames}"):
        encoder()(windows(frames))


def test_receptive_field_of_a_code():
    """Code k (of frames 8(k+1) ... 8(k+1)+7 of the input) sees its 8 frames and 7 before them, and nothing else."""
    module, x = encoder(), windows(40)
    codes = module(x)
    for frame in range(40):
        other = x.clone()
        other[:, frame] += 1
        changed = {k for k in range(4) if not torch.equal(module(other)[:, k], codes[:, k])}
        assert changed == {k for k in range(4) if 8 * (k + 1) - 7 <= frame <= 8 * (k + 1) + 7}


def test_tokens_hear_their_part_of_the_window():
    """Positions are dealt to the tokens in order of time: token i gets the i-th part of every frame's window."""
    module, x = encoder(), windows(16)
    codes, part = module(x), CONFIG.positions // CONFIG.tokens
    for position in range(CONFIG.positions):
        other = x.clone()
        other[:, :, position] += 1
        changed = [i for i in range(CONFIG.tokens) if not torch.equal(module(other)[:, :, i], codes[:, :, i])]
        assert changed == [position // part]


@pytest.mark.parametrize("chunk", [1, 3])
def test_chunks_with_8_frames_of_history_are_the_whole(chunk):
    module, x = encoder(), windows(8 * 13)
    whole = module(x)
    pieces = [module(x[:, 8 * i : 8 * (i + chunk + 1)]) for i in range(0, 12, chunk)]
    torch.testing.assert_close(torch.cat(pieces, 1), whole, rtol=1e-12, atol=1e-12)


def test_code_by_hand():
    """Linear, then three times SiLU and a stride-2 convolution that looks one step back, written out as sums."""
    module, x = encoder(), windows(16)
    part = CONFIG.positions // CONFIG.tokens
    for token in (0, CONFIG.tokens - 1):
        rows = [x[0, f, part * token : part * (token + 1)].reshape(-1) for f in range(16)]
        level = [module.project.weight @ row + module.project.bias for row in rows]
        for conv in module.down:
            silent = torch.zeros(CONFIG.width, dtype=F64)
            active = [v / (1 + (-v).exp()) for v in level]
            taps = [[active[2 * i + j - 1] if 2 * i + j else silent for j in range(3)] for i in range(len(level) // 2)]
            level = [conv.bias + sum(conv.weight[:, :, j] @ tap[j] for j in range(3)) for tap in taps]
        torch.testing.assert_close(module(x)[0, 0, token], level[1], rtol=1e-11, atol=1e-11)


def test_decoder_shapes_and_causality():
    """Codes back to 8 frames each; code k changes the features of its own frames and later ones."""
    module = SpeechDecoder(CONFIG).double()
    randomise(module, 5)
    module.requires_grad_(False)
    codes = torch.randn(2, 5, CONFIG.tokens, CONFIG.width, dtype=F64)
    whole = module(codes)
    assert whole.shape == (2, 40, CONFIG.positions, CONFIG.channels)
    for k in range(5):
        other = codes.clone()
        other[:, k] += 1
        changed = (module(other) != whole).flatten(2).any(-1)[0]
        assert not changed[: 8 * k].any() and changed[8 * k : 8 * k + 8].all()
    other = codes.clone()
    other[:, :, 1] += 1  # a token speaks of its own part of the window
    changed = (module(other) != whole).transpose(1, 2).flatten(2).any(-1)[0]
    part = CONFIG.positions // CONFIG.tokens
    assert changed.nonzero().flatten().tolist() == list(range(part, 2 * part))


def test_autoencoder_fits_together():
    both = SpeechAE(preset("toy").speech)
    x = torch.randn(1, 24, 20, 80)
    y = both.decoder(both.encoder(x))
    assert y.shape == x[:, 8:].shape
    ((y - x[:, 8:]) ** 2).mean().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in both.parameters())
