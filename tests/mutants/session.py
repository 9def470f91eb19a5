"""Of a live stream: session, its snapshots, the block decoder, sampler, cache, noise, what a step hears."""

from __future__ import annotations

from tests.mutants import Mutant
from tests.mutants.engine import MANY
from tests.mutants.flashhead import FLASHHEAD
from tests.mutants.kernels import KERNELS
from tests.mutants.windows import WINDOWS

ORACLE = "tests/streaming/test_session_oracle.py"
DEFAULT = f"{ORACLE}::test_a_session_shows_what_the_oracle_says[default]"
PER_STEP = f"{ORACLE}::test_a_session_shows_what_the_oracle_says[per_step]"
CLEAN = f"{ORACLE}::test_a_session_shows_what_the_oracle_says[clean_noise_of_the_decoder]"
AHEAD = f"{ORACLE}::test_a_session_shows_what_the_oracle_says[lookahead_1]"
ALONE = f"{ORACLE}::test_a_session_shows_what_the_oracle_says[absolute_without_guidance]"
NO_CONTEXT = f"{ORACLE}::test_a_decoder_that_looks_ahead_begins_with_the_reference_when_no_context_does"
FAULTS = "tests/streaming/test_session_faults.py"
LIVE = "tests/streaming/test_session_live.py"
SNAPSHOTS = "tests/streaming/test_session_snapshots.py"
SAMPLER = "tests/streaming/test_sampler.py"
STEPS = "tests/streaming/test_step.py"
BESIDE = "tests/streaming/test_engine_frames.py"
GRAPH = "tests/streaming/test_session_graphs.py"
CACHE = "tests/streaming/test_cache.py"
SHARED = "tests/streaming/test_decoding.py"
NOISE = "tests/test_noise.py"
SPEECH = "tests/models/test_speech.py"
HEARING = "tests/models/test_step.py"
EXACT = f"{HEARING}::test_a_step_is_exact_in_float64"
DRAWN = "tests/ops/test_latent_noise.py"
HEARS = "tests/ops/test_frame_audio_update.py"

FOLDER = "rest_fast/streaming"
SESSION, STREAM, LINE = f"{FOLDER}/session.py", f"{FOLDER}/stream.py", f"{FOLDER}/timeline.py"
MAIL, SEAT = f"{FOLDER}/mailbox.py", f"{FOLDER}/seat.py"
STATE, DECODER, SOUND = f"{FOLDER}/snapshot.py", f"{FOLDER}/decoder.py", f"{FOLDER}/sound.py"
DECODE, VIEWING = f"{FOLDER}/decoding.py", f"{FOLDER}/viewing.py"
LOOP, STEP, ROWS = f"{FOLDER}/sampler.py", f"{FOLDER}/step.py", f"{FOLDER}/cache.py"
UPDATE = "rest_fast/ops/frame_audio_update.py"

CONTEXT = [
    ("no rebuild after a cut segment", STREAM, "= plan.keep < self.chunk, plan.idle",
     "= False, plan.idle", DEFAULT),
    ("a context rebuilt with the noise of the next chunk", STREAM, "+ i, noise.CONTEXT)", "+ i, noise.LATENT)",
     DEFAULT),
    ("codes of a rebuilt context zeroed", STREAM, "torch.stack([latent.code for latent in part])",
     "torch.stack([0 * latent.code for latent in part])", DEFAULT),
    ("the oldest latents as context", STREAM, "list(self.history)[len(self.history) - count :]",
     "list(self.history)[:count]", DEFAULT),
    ("no rebuild after an interrupt", STREAM, "self.stale, self.idle_wanted = True, False",
     "self.idle_wanted = False", DEFAULT),
    ("no reference before too few latents", STREAM,
     "min(-(-self.timeline.generated // self.chunk) * self.chunk, self.context)",
     "min(self.timeline.generated // self.chunk * self.chunk, self.context)", DEFAULT),
    ("rows not opened for a rebuilt context", STREAM, "self._open_rows()\n        count", "count", DEFAULT),
    ("the photo's sink in the branch without guidance", STREAM,
     "self.cache.open(self.session.uncond, *self.model.null_sink)",
     "self.cache.open(self.session.uncond, self.avatar.sink_k, self.avatar.sink_v)", DEFAULT),
    ("noise of an epoch before", LINE, "self.epoch += 1", "pass", DEFAULT),
    ("dropped latents stay in the history", STREAM, "self.history.pop()", "pass", DEFAULT),
]  # fmt: skip

TIMELINE = [
    ("an idle chunk hears what is queued", LINE, "self.border(first), True)", "self.sound.end, True)", DEFAULT),
    ("a segment hears the next one", LINE, "min(self.chunk, end - first), self.border(end)",
     "min(self.chunk, end - first), self.sound.end", DEFAULT),
    ("an idle chunk takes the place of queued sound", LINE, "self.sound.insert_silence(plan",
     "0 and self.sound.insert_silence(plan", DEFAULT),
    ("queued speech survives an interrupt", LINE, "self.sound.truncate(", "(lambda _: None)(", DEFAULT),
    ("queued segment ends survive an interrupt", LINE, "self.segments.clear()", "pass", DEFAULT),
    ("a shown time is rounded down", SESSION, "math.ceil(shown_pts / seconds", "math.floor(shown_pts / seconds",
     DEFAULT),
    ("the floor goes back with an interrupt", MAIL, "self.floor = max(self.floor, self.delivered - self.lead)",
     "self.floor = max(0, self.delivered - self.lead)", DEFAULT),
    ("the floor stays at the start", MAIL, "self.floor = max(self.floor, self.delivered - self.lead)",
     "self.floor = 0", DEFAULT),
    ("a segment's last block is all the caller's", VIEWING, "else max(0, true_end - a)", "else b - a", DEFAULT),
    ("frames before the stream are heard as silence", "rest_fast/models/speech.py",
     "missing = max(0, min(TEMPORAL + frames, -past))", "missing = 0",
     f"{ORACLE}::test_the_oracle_itself_follows_the_decoder_as_a_whole"),
    ("sound is dropped a second too early", SOUND, "reach = back + self.margin + RATE",
     "reach = back + self.margin - RATE", DEFAULT),
    ("a block of the old epoch", MAIL, "self.ready.clear()\n            self.epoch += 1", "self.epoch += 1",
     f"{LIVE} {BESIDE}"),
    ("speech waits behind all silence", VIEWING,
     "        self.timeline.take_back(count)\n        self._forget_latents(count)", "        return",
     f"{BESIDE}::test_idle_that_nobody_has_seen_gives_way_to_speech"),
    ("silence that was taken back stays in the sound", LINE,
     "self.sound.cut(self.border(first), self.border(self.generated))", "pass",
     f"{BESIDE}::test_idle_that_nobody_has_seen_gives_way_to_speech"),
    ("a dropped job leaves its chunk in the context", STREAM,
     "may have been.\"\"\"\n        self.stale = True", "may have been.\"\"\"",
     "tests/streaming/test_stream.py::test_a_job_that_was_run_and_dropped_leaves_a_rebuilt_context"),
    ("no reference for a decoder without context", STREAM, "max(self.context, 1)", "self.context", NO_CONTEXT),
]  # fmt: skip

RESTORING = [
    ("a snapshot without its stale context", STREAM, "stale, idle_wanted = fields.flag(\"_stale_context\"), ",
     "stale, idle_wanted = False, ", DEFAULT),
    ("a snapshot without its idle flags", STREAM, "                *flags,\n",
     "                False,\n                flags[1],\n", DEFAULT),
    ("a snapshot without its epoch", LINE, "fields.integer(\"epoch\", 0, noise.MOST)\n", "0\n", DEFAULT),
    ("a snapshot without its format", SEAT, "content.timeline.floor, content.timeline.sound.format",
     "content.timeline.floor, None",
     f"{SNAPSHOTS}::test_a_restored_session_knows_its_format"),
    ("a snapshot without its floor", SEAT, "= content.timeline.floor, content",
     "= max(0, content.timeline.delivered - mailbox.lead), content", DEFAULT),
    ("latents of a snapshot that wait are lost", LINE,
     "found.delivered = fields.integer(\"_delivered\", 0, found.generated)", "found.delivered = found.generated",
     DEFAULT),
    ("queued segments of a snapshot lost", LINE, "        return deque(pairs)\n", "        return deque()\n", DEFAULT),
    ("the start of a snapshot's sound", LINE, "SoundTimeline.restore(self.sound.rate, start,",
     "SoundTimeline.restore(self.sound.rate, 0,",
     f"{SNAPSHOTS}::test_counts_that_contradict_each_other[committed]"),
    ("a NaN in a cache row is taken", STREAM, "fields.finite(f\"{letter}.{i}\", tensor[:, :, held])", "pass",
     f"{SNAPSHOTS}::test_every_tensor[early]"),
    ("True is a count", STATE, "type(value) is int and low", "isinstance(value, int) and low",
     f"{SNAPSHOTS}::test_every_value[early]"),
    ("a state of the decoder from elsewhere", DECODER, "fields.require(torch.equal(found, facts)",
     "fields.require(True",
     f"{SNAPSHOTS}::test_every_tensor[later]"),
]  # fmt: skip

DECODING = [
    ("the decoder goes on from where it was", DECODE, "if at is None or at() is not state:", "if at is None:",
     DEFAULT),
    ("what was shown is not decoded again", DECODER, "if self._to_repeat:", "if False:", AHEAD),
    ("a segment's last latents stay provisional", DECODER, "provisional = 0 if last else self.ahead",
     "provisional = self.ahead", AHEAD),
    ("no latent is provisional", DECODER, "provisional = 0 if last else self.ahead", "provisional = 0", AHEAD),
    ("the reference's frame is shown", DECODE, "frames[len(frames) % TEMPORAL :]",
     "frames[: len(frames) - len(frames) % TEMPORAL]", AHEAD),
    ("a state that is still needed is forgotten", DECODER, "self._states[1][0] <= floor",
     "self._states[1][0] <= floor + 1",
     DEFAULT),
    ("made pictures survive an interrupt", DECODER, "self._made.clear()\n        while", "while", AHEAD),
    ("the decoder's noise is that of a chunk", "rest_fast/models/vae/codec.py", "latents.shape, noise.DECODER",
     "latents.shape, noise.LATENT", CLEAN),
    ("a stream goes on in the state of another", DECODE, "if at is None or at() is not state:", "if state.started < 1:",
     SHARED),
    ("a piece that failed leaves its stream in its state", DECODE, "at, self._at = self._at, None", "at = self._at",
     SHARED),
    ("a state is copied before every piece", DECODE, "if at is None or at() is not state:", "if True:", SHARED),
    ("a dtype stays for other streams", DECODE, "self.stream.dtype = dtype",
     "self.stream.dtype = dtype or self.stream.dtype", SHARED),
    ("a photo stays for other streams", "rest_fast/models/vae/state.py", "found[path] = place.copy_(tensor)",
     "found[path] = place if path == REFERENCE else place.copy_(tensor)", SHARED),
    ("a closed stream's state is held", DECODE, "self._at = weakref.ref(after)", "self._at = lambda: after", SHARED),
    ("a stream with a decoding makes its own", STREAM, "decoding = decoding or Decoding(", "decoding = Decoding(",
     SHARED),
    ("a motion decoder paints photos of one layout", "rest_fast/models/vae/motion.py",
     "*(x.contiguous() for x in (photo, *maps))", "photo, *(x.contiguous() for x in maps)", SHARED),
]  # fmt: skip

SAMPLING = [
    ("a per-step context is rebuilt in one bank", LOOP, "at if context == \"per_step\" else [0]", "[0] * len(at)",
     PER_STEP + f" {SAMPLER}"),
    ("a context is rebuilt at another step's level", LOOP, "\"last_step\": [steps - 1]", "\"last_step\": [0]", SAMPLER),
    ("a context is rebuilt without noise", LOOP, "(1 - self.sigmas[step]) * latents + self.sigmas[step] * noise",
     "latents", SAMPLER),
    ("clean contexts are not evaluated", LOOP, "if self.cache.stream.context == \"clean\":", "if False:", SAMPLER),
    ("all steps read one bank", LOOP, "step % banks", "0", SAMPLER),
    ("guidance the other way round", STEP, "v.index_select(0, cond), v.index_select(0, uncond), guidance",
     "v.index_select(0, uncond), v.index_select(0, cond), guidance", SAMPLER),
    ("the unconditional branch hears", STEP, "entries[\"hears\"][i] = slot",
     "entries[\"hears\"][i] = entries[\"hears\"][lanes[-1][0]] = slot", STEPS),
    ("latents belong to lanes", STEP, "slot = turn.session.slot", "slot = i", STEPS),
    ("idle turns have the first slot", STEP, "\"slot\": self.slots}", "\"slot\": 0}", STEPS),
    ("all turns at the level of the first", STEP, "turn.level, i)", "turns[0].level, i)", STEPS),
    ("an idle lane has the first row", STEP, "{\"row_index\": IDLE, \"n_valid\"", "{\"row_index\": 0, \"n_valid\"",
     STEPS),
    ("a captured commit of the first lane alone", STEP,
     "graph(lambda: self.cache.rotate(*self.commits.first(self.lanes, COMMIT)))",
     "graph(lambda: self.cache.rotate(*self.commits.first(1, COMMIT)))", STEPS),
    ("an opened row remembers its age", ROWS, "        self._move(row, 0)\n", "", SAMPLER),
    ("a restored row is young", ROWS, "        self._move(row, committed)\n\n    def require",
     "\n    def require", CACHE),
    ("absolute positions stand still", ROWS, "        if self.stream.positions == \"absolute\":\n            first",
     "        if False:\n            first", SAMPLER),
    ("keys are not turned", ROWS, "if self.rotates and any(enabled):", "if False:", CACHE),
    ("keys are not turned by the step", STEP, "not any(enabled)", "True", SAMPLER),
    ("every slot is held", ROWS, "[*range(start), *range(start + self.chunk, valid)]",
     "[*range(valid)]",
     f"{SNAPSHOTS}::test_what_is_written_before_it_is_read_may_be_anything[early]"),
    ("two purposes share their noise", "rest_fast/noise.py", "DECODER, TEXTURE, RENOISE, POSTERIOR, PHOTO = range(7)",
     "DECODER, TEXTURE, RENOISE, POSTERIOR, PHOTO = 0, 1, 0, 3, 4, 5, 6", NOISE),
    ("the high word of a latent's index", "rest_fast/noise.py", "latent >> 32, purpose", "0, purpose", NOISE),
    ("a negative index", "rest_fast/noise.py", "    _require(\"latent\", latent, 64)\n", "", NOISE),
    ("all frames are drawn with one index", "rest_fast/ops/latent_noise.py", "noise.words(seed, latent, purpose)",
     "noise.words(seed, 0, purpose)", DRAWN),
    ("all frames have the key of the first", "rest_fast/noise.py",
     "philox4x32(counter, (seed_low, seed_high))", "philox4x32(counter, (seed_low[:1], seed_high[:1]))", DRAWN),
]  # fmt: skip

AUDIO = [
    ("one loudest band for all sounds", "rest_fast/models/speech.py", "power.amax((1, 2), keepdim=True) - 8",
     "power.amax() - 8", SPEECH),
    ("what is behind the sound is heard", "rest_fast/models/speech.py", "-(-(count + WINDOW) // HOP) * HOP",
     "-(-count // HOP) * HOP", SPEECH),
    ("a lane that hears nothing gets the bias alone", "rest_fast/models/cross_attention.py",
     "linear(self.out, self.kv.bias[-len(self.q_norm) :][None])[0]", "1 * self.out.bias", EXACT),
    ("few audio tokens are many", "rest_fast/models/cross_attention.py", "if not 1 < codes.shape[2] <= MOST:",
     "if not 1 < codes.shape[2] <= 99:", f"{HEARING}::test_only_few_audio_tokens_are_an_update"),
    ("the first audio token has no share", UPDATE, "pad(score, (0, 0, 1, 0)).softmax(-2)[..., 1:, :]",
     "pad(score, (0, 0, 0, 0)).softmax(-2)", f"{EXACT} {HEARS}"),
    ("keys without the norm's weight", UPDATE, " * q_weight.to(wide).view(heads, dim)", "", f"{EXACT} {HEARS}"),
    ("a lane without a slot hears the first", UPDATE, "(slot < 0)[:, None, None]", "(slot < -1)[:, None, None]", HEARS),
]  # fmt: skip

GRAPHS = [
    ("a graph may hold lengths of the host", "rest_fast/ops/dispatch.py",
     "if self.uncaptured and _CAPTURING.get():", "if False:",
     "tests/ops/test_dispatch.py"),
    ("attention follows a row before the cache", "rest_fast/ops/sink_ring_attention.py",
     ".clamp_(0, rows * banks - 1)", "", "tests/ops/test_sink_ring_attention.py"),
    ("an idle lane is written", "rest_fast/ops/qk_norm_rope_cache.py", "busy = row_index != IDLE",
     "busy = row_index == row_index", "tests/ops/test_idle_lanes.py"),
    ("a graph reads histories where they were", "rest_fast/models/vae/streams.py",
     "            state.bring_home()\n            z.copy_(latents)", "            z.copy_(latents)", GRAPH),
    ("pictures of a replay are not copied", f"{FOLDER}/block.py", "[cls(part.clone()) for part in parts]",
     "[cls(part) for part in parts]", GRAPH),
]  # fmt: skip

EVERY = [*CONTEXT, *TIMELINE, *RESTORING, *DECODING, *SAMPLING, *AUDIO, *GRAPHS, *MANY, *KERNELS, *WINDOWS, *FLASHHEAD]
MUTANTS = [Mutant(*row) for row in EVERY]
