"""Synthetic speech, its phonemes and the mouth that follows them."""

import itertools
import multiprocessing
import sys
import time

import numpy as np
import pytest
import soxr

from rest_fast.training.synthetic.speech import VOICES, Phoneme, speak, utterance
from rest_fast.training.synthetic.speech import sentence as random_sentence
from rest_fast.training.synthetic.visemes import MOUTH, VISEMES, mouth_track, viseme_of
from rest_fast.training.synthetic.words import SPLITS, WORDS
from rest_fast.units import RATE

OPEN, WIDTH, ROUND, PRESS, TUCK, TONGUE = range(6)
FRAME = RATE // 25


@pytest.fixture
def espeak():
    return pytest.importorskip("espeakng_loader")


def track_of(speech):
    return mouth_track(speech.phonemes, speech.samples, -(-len(speech.samples) // FRAME))


def frames_within(phoneme):
    """Frames whose centre lies in the phoneme."""
    return [k for k in range(10_000) if phoneme.start <= (k + 0.5) / 25 < phoneme.end]


def inside(speech, phoneme):
    return speech.samples[round(phoneme.start * RATE) : round(phoneme.end * RATE)]


def rms(samples):
    return float(np.sqrt(np.mean(np.square(samples, dtype=np.float64))))


def is_pause(phoneme):
    return phoneme.name.startswith("_")


# --- words and voices


def test_splits_share_no_word_no_derived_form_and_no_voice():
    assert set(WORDS) == set(VOICES) == set(SPLITS)
    everything = [word for split in SPLITS for word in WORDS[split]]
    assert len(everything) == len(set(everything)) > 280
    assert all(word.isascii() and word.isalpha() and word.islower() for word in everything)
    assert 0.15 < len(WORDS["test"]) / len(everything) < 0.25
    assert 0.07 < len(WORDS["validation"]) / len(everything) < 0.15
    for one, other in itertools.permutations(SPLITS, 2):
        for word, long in itertools.product(WORDS[one], WORDS[other]):
            endings = ("s", "es", "d", "ed", "ing", word[-1] + "ing", "er", "r", "y", "ly", "ful", "less")
            assert long not in [word + ending for ending in endings]
            assert len(word) < 4 or word not in long, f"{long} contains {word}"
        assert not set(VOICES[one]) & set(VOICES[other])
        variants = [{voice.partition("+")[2] for voice in VOICES[split]} - {""} for split in (one, other)]
        assert not variants[0] & variants[1]
    assert (len(VOICES["validation"]), len(VOICES["test"])) == (3, 4) and len(VOICES["train"]) >= 24


@pytest.mark.parametrize("split", SPLITS)
def test_a_random_sentence_has_four_to_ten_words_of_its_split(split):
    rng = np.random.default_rng(0)
    sentences = [random_sentence(rng, split) for _ in range(200)]
    assert {len(text.split()) for text in sentences} == set(range(4, 11))
    assert {text[-1] for text in sentences} == {".", "?", "!"}
    assert {word for text in sentences for word in text[:-1].split()} <= set(WORDS[split])


def test_every_phoneme_of_every_word_and_accent_has_a_viseme_and_every_split_has_all_visemes(espeak):
    accents = {voice.partition("+")[0] for voices in VOICES.values() for voice in voices} | set(VOICES["test"])
    for accent, split in itertools.product(sorted(accents), SPLITS):
        words = WORDS[split]
        seen = set()
        for first in range(0, len(words), 40):
            speech = speak(" ".join(words[first : first + 40]) + ".", accent, rate=400)
            seen.update(viseme for phoneme in speech.phonemes for viseme in viseme_of(phoneme.name))
        if accent == "en-us":
            assert seen | {"sil"} == set(VISEMES)


def test_all_voices_speak_and_differ(espeak):
    heard = [speak("mother", voice).samples.tobytes() for voices in VOICES.values() for voice in voices]
    assert len(set(heard)) == len(heard)


@pytest.mark.parametrize("voice", ["nobody", "en-us+nobody", "en-us+../en-us"])
def test_a_voice_that_espeak_does_not_have_is_refused(espeak, voice):
    with pytest.raises(ValueError, match="no voice"):
        speak("hello", voice)


def test_without_the_extra_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "espeakng_loader", None)
    with pytest.raises(ImportError, match=r"synthetic speech needs: pip install 'rest_fast\[synth\]'"):
        speak("hello", "en-us")


# --- speak


def test_the_same_words_sound_the_same_whatever_was_spoken_before(espeak):
    def a():
        return speak("the big boat is moving", "en-us+f1", pitch=60)

    first = a()
    speak("hello father, what a day!", "en-gb-scotland", rate=190, pitch=20, pitch_range=90)
    speak("hush", "en-us+klatt")
    again = a()
    np.testing.assert_array_equal(first.samples, again.samples)
    assert first.phonemes == again.phonemes
    assert not np.array_equal(first.samples[:8000], speak("the big boat is moving", "en-us+f1").samples[:8000])


@pytest.mark.parametrize("method", ["spawn", "fork"])
def test_another_process_makes_the_same_clip(espeak, method):
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"no {method} here")
    with multiprocessing.get_context(method).Pool(1) as pool:
        elsewhere = pool.apply(utterance, (np.random.default_rng(7), "train", 3.0))
    here = utterance(np.random.default_rng(7), "train", 3.0)
    np.testing.assert_array_equal(here.samples, elsewhere.samples)
    assert here.phonemes == elsewhere.phonemes and here.text == elsewhere.text and here.voice == elsewhere.voice


def test_phonemes_come_in_the_order_of_the_text_without_gaps(espeak):
    speech = speak("mamma pappa, who moved the boat?", "en-us")
    shapes = [viseme for phoneme in speech.phonemes for viseme in viseme_of(phoneme.name)]
    lips = [shape for shape in shapes if shape in ("PBM", "UW", "FV", "TH")]
    assert lips == ["PBM"] * 4 + ["UW", "PBM", "UW", "FV", "TH", "PBM", "UW"]
    assert speech.phonemes[0].start == 0.0
    assert speech.phonemes[-1].end == pytest.approx(len(speech.samples) / RATE)
    for one, following in itertools.pairwise(speech.phonemes):
        assert one.start < one.end == following.start
    assert speech.samples.dtype == np.float32 and np.abs(speech.samples).max() == pytest.approx(1.0)


@pytest.mark.parametrize("voice", VOICES["test"])
def test_phoneme_times_are_those_of_the_sound(espeak, voice):
    # Pauses are silent, vowels are loud, and the hiss of `s` fills exactly its own segment.
    speech = speak("ask a goose, a lesson, a chess boss.", voice)
    whole = rms(speech.samples)

    def hiss(samples):
        power = np.abs(np.fft.rfft(samples * np.hanning(len(samples)))) ** 2
        return float(power[np.fft.rfftfreq(len(samples), 1 / RATE) > 3000].sum() / power.sum())

    hisses = 0
    for before, phoneme, after in zip(speech.phonemes, speech.phonemes[1:], speech.phonemes[2:]):
        samples = inside(speech, phoneme)
        if is_pause(phoneme) and phoneme.end - phoneme.start > 0.05:
            assert rms(samples[160:-160]) < 0.1 * whole
        if phoneme.name.strip("',%") in ("a", "A:", "E", "u:", "0", "O:"):
            assert rms(samples) > 0.5 * whole
        if phoneme.name == "s" and viseme_of(before.name)[0] in ("AE", "EH", "UW", "AO", "AA"):
            hisses += 1
            assert hiss(samples) > 0.6
            assert hiss(inside(speech, before)[:-160]) < 0.1
            assert is_pause(after) or viseme_of(after.name)[0] == "KG" or hiss(inside(speech, after)[160:]) < 0.1
    assert hisses >= 3


def test_resampling_keeps_every_frequency_in_its_place(espeak, monkeypatch):
    native = []
    original = soxr.resample

    def spy(samples, rate, *arguments, **options):
        native.append((samples, rate))
        return original(samples, rate, *arguments, **options)

    monkeypatch.setattr(soxr, "resample", spy)
    speech = speak("all warm", "en-us", pitch_range=0)
    (before, rate) = native[0]
    assert len(speech.samples) / RATE == pytest.approx(len(before) / rate, abs=1e-4)

    def peak(samples, rate):
        power = np.abs(np.fft.rfft(samples * np.hanning(len(samples)), 1 << 18))
        return np.argmax(power) * rate / (1 << 18)

    assert peak(speech.samples, RATE) == pytest.approx(peak(before, rate), abs=0.2)
    # and nothing is late: the loudest moment is where it was
    assert np.argmax(np.abs(speech.samples)) / RATE == pytest.approx(np.argmax(np.abs(before)) / rate, abs=2 / RATE)


# --- utterance


def test_a_clip_has_exactly_its_length_and_phonemes_from_end_to_end(espeak):
    for seed, (split, seconds) in enumerate(itertools.product(SPLITS, (0.31, 1.0, 4.3999))):
        speech = utterance(np.random.default_rng(seed), split, seconds)
        assert speech.samples.shape == (round(seconds * RATE),) and speech.samples.dtype == np.float32
        assert speech.voice in VOICES[split]
        assert {word.strip(".?!") for word in speech.text.split()} <= set(WORDS[split])
        assert speech.phonemes[0].start == 0.0
        assert speech.phonemes[-1].end == pytest.approx(round(seconds * RATE) / RATE, abs=1e-9)
        for one, following in itertools.pairwise(speech.phonemes):
            assert one.end == pytest.approx(following.start, abs=1e-9)


def test_clips_vary_in_level_noise_and_pauses_and_never_clip(espeak):
    rng = np.random.default_rng(3)
    begin = time.process_time()
    clips = [utterance(rng, "validation", 4.4) for _ in range(60)]
    assert (time.process_time() - begin) / len(clips) < 0.1  # a quarter of it is usual
    levels, floors, rests, paused = [], [], [], []
    for speech in clips:
        assert np.abs(speech.samples).max() <= 1.0
        spoken = np.concatenate([inside(speech, p) for p in speech.phonemes if not is_pause(p)])
        silent = [inside(speech, p) for p in speech.phonemes if is_pause(p) and p.end - p.start > 0.14]
        levels.append(20 * np.log10(rms(spoken)))
        floors += [20 * np.log10(rms(s) + 1e-9) for s in silent]
        rests.append(max([p.end - p.start for p in speech.phonemes if is_pause(p)], default=0.0))
        paused.append(is_pause(speech.phonemes[0]))
        assert all(rms(s) < 0.5 * rms(spoken) for s in silent)
    assert -33 < min(levels) < -28 and -19 < max(levels) < -13
    assert 0.3 < np.mean(np.array(floors) > -72) < 0.7 and max(floors) < -40
    assert 1 <= np.sum(np.array(rests) >= 1.0) <= 12 and max(rests) <= 2.01
    assert 0.3 < np.mean(paused) < 0.7


# --- visemes


def test_viseme_table_and_names():
    assert len(VISEMES) == 23 and MOUTH == ("open", "width", "round", "press", "tuck", "tongue")
    for values in VISEMES.values():
        assert len(values) == 7 and values[6] > 0 and -1 <= values[1] <= 1
        assert all(0 <= value <= 1 for value in (values[0], *values[2:6]))
    assert viseme_of("'aI@") == ("AA", "IY", "ER") and viseme_of("oU") == ("OW", "UW")
    assert viseme_of("t#") == ("TDN",) and viseme_of("tS") == ("SH",) and viseme_of(",I2") == ("IH",)
    assert viseme_of("_:") == viseme_of("(en)") == ("sil",)
    with pytest.raises(ValueError, match="no viseme"):
        viseme_of("&")


@pytest.mark.parametrize("voice", ["en-us", *VOICES["test"]])
@pytest.mark.parametrize("rate", [130, 160, 190])
def test_mamma_pappa_shuts_the_lips_four_times_and_opens_them_between(espeak, voice, rate):
    speech = speak("mamma pappa", voice, rate=rate)
    track = track_of(speech)
    fine = mouth_track(speech.phonemes, speech.samples, int(len(speech.samples) / RATE * 100), fps=100)
    lips = [phoneme for phoneme in speech.phonemes if viseme_of(phoneme.name) == ("PBM",)]
    assert len(lips) == 4
    for closure in lips:
        frames = frames_within(closure)
        if closure.end - closure.start >= 0.04:
            assert track[frames, OPEN].min() < 0.06 and track[frames, PRESS].max() > 0.85
        assert fine[round(closure.start * 100) : round(closure.end * 100), OPEN].min() < 0.02
    stressed = [phoneme for phoneme in speech.phonemes if phoneme.name.startswith("'")]
    assert len(stressed) == 2
    for vowel in stressed:  # 0.09 s between two labials at the highest rate
        assert fine[round(vowel.start * 100) : round(vowel.end * 100), OPEN].max() > (0.5 if rate < 190 else 0.3)


def test_lips_shut_in_the_silence_before_the_burst_of_p(espeak):
    # From the sound alone: the longest silent stretch inside "happy" is the closure of its p.
    speech = speak("happy", "en-us", rate=130)
    loud = np.flatnonzero(np.abs(speech.samples) > 0.02)
    jump = np.argmax(np.diff(loud))
    middle = (loud[jump] + loud[jump + 1]) / 2
    assert loud[jump + 1] - loud[jump] > 0.03 * RATE
    track = mouth_track(speech.phonemes, speech.samples, 1, offset=round(middle) - FRAME // 2)
    assert track[0, OPEN] < 0.05 and track[0, PRESS] > 0.9


def test_who_rounds_father_tucks_three_shows_the_tongue_and_bee_spreads(espeak):
    def extremes(text):
        return track_of(speak(text, "en-us")).max(axis=0)

    assert extremes("who")[ROUND] > 0.9 and extremes("heart")[ROUND] < 0.45
    assert extremes("father")[TUCK] > 0.9 and extremes("mother")[TUCK] < 0.1
    assert extremes("thin")[TONGUE] > 0.8 and extremes("bamboo")[TONGUE] < 0.2
    assert extremes("bee")[WIDTH] > 0.7 and extremes("who")[WIDTH] < 0.3
    assert extremes("father")[OPEN] > 0.8 and extremes("who")[OPEN] < 0.4


def test_silence_is_rest(espeak):
    speech = speak("father", "en-us")
    samples = np.concatenate([speech.samples, np.zeros(2 * RATE, np.float32)])
    track = mouth_track(speech.phonemes, samples, len(samples) // FRAME)
    rest = track[-45:]
    assert rest[:, OPEN].max() < 0.03 and np.abs(rest[:, [WIDTH, ROUND, TUCK, TONGUE]]).max() < 0.02
    nothing = mouth_track((), np.zeros(RATE, np.float32), 25)
    assert nothing.shape == (25, 6) and nothing.dtype == np.float32 and nothing[:, OPEN].max() < 0.03


def test_a_later_start_gives_the_same_frames_and_gain_does_not_matter(espeak):
    speech = utterance(np.random.default_rng(5), "test", 4.0)
    track = mouth_track(speech.phonemes, speech.samples, 100)
    later = mouth_track(speech.phonemes, speech.samples, 60, offset=30 * FRAME)
    np.testing.assert_allclose(later, track[30:90], atol=1e-6)
    quiet = mouth_track(speech.phonemes, speech.samples * 0.05, 100)
    np.testing.assert_allclose(quiet, track, atol=1e-5)
    assert track[:, OPEN].min() >= 0 and track.max() <= 1 and track.min() >= -1
    assert np.isfinite(mouth_track(speech.phonemes, speech.samples, 10, offset=60 * RATE)).all()
    assert np.isfinite(mouth_track(speech.phonemes, speech.samples, 10, offset=-RATE)).all()


def test_loud_speech_opens_the_mouth_a_little_more():
    vowels = (Phoneme("A:", 0.0, 2.0), Phoneme("A:", 2.0, 4.0))
    samples = np.concatenate([np.full(2 * RATE, 0.02, np.float32), np.full(2 * RATE, 0.2, np.float32)])
    track = mouth_track(vowels, samples, 100)
    assert 0.8 <= track[20, OPEN] < track[80, OPEN] - 0.1 <= 0.95


@pytest.mark.parametrize("length", [0.04, 0.06, 0.1])
@pytest.mark.parametrize("phase", [0.0, 0.013, 0.02, 0.033])
@pytest.mark.parametrize("name, closed", [("b", 0.07), ("f", 0.16)])
def test_a_closure_of_a_frame_or_more_is_seen_wherever_it_falls(length, phase, name, closed):
    start = 0.4 + phase
    phonemes = (Phoneme("A:", 0, start), Phoneme(name, start, start + length), Phoneme("A:", start + length, 1.0))
    track = mouth_track(phonemes, np.full(RATE, 0.1, np.float32), 25)
    near = track[9:15, OPEN]
    assert near.min() < closed and track[5, OPEN] > 0.75 and track[20, OPEN] > 0.75
