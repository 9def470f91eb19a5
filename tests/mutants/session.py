"""Of a live stream: session, its snapshots, the block decoder, sampler, cache, noise, what a step hears."""

from __future__ import annotations

from tests.mutants import Mutant

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
GRAPH = "tests/streaming/test_session_graphs.py"
CACHE = "tests/streaming/test_cache.py"
NOISE = "tests/test_noise.py"
SPEECH = "tests/models/test_speech.py"
HEARING = "tests/models/test_step.py"
EXACT = f"{HEARING}::test_a_step_is_exact_in_float64"
DRAWN = "tests/ops/test_latent_noise.py"
HEARS = "tests/ops/test_frame_audio_update.py"

FOLDER = "rest_fast/streaming"
SESSION, STREAM, LINE = f"{FOLDER}/session.py", f"{FOLDER}/stream.py", f"{FOLDER}/timeline.py"
STATE, DECODER, SOUND = f"{FOLDER}/snapshot.py", f"{FOLDER}/decoder.py", f"{FOLDER}/sound.py"
LOOP, STEP, ROWS = f"{FOLDER}/sampler.py", f"{FOLDER}/step.py", f"{FOLDER}/cache.py"
UPDATE = "rest_fast/ops/frame_audio_update.py"

CONTEXT = [
    ("no rebuild after a cut segment", STREAM, "self.stale = plan.keep < self.chunk",
     "self.stale = False", DEFAULT),
    ("a context rebuilt with the noise of the next chunk", STREAM, "+ i, noise.CONTEXT)", "+ i, noise.LATENT)",
     DEFAULT),
    ("codes of a rebuilt context zeroed", STREAM, "torch.stack([latent.code for latent in part])",
     "torch.stack([0 * latent.code for latent in part])", DEFAULT),
    ("the oldest latents as context", STREAM, "list(self.history)[len(self.history) - count :]",
     "list(self.history)[:count]", DEFAULT),
    ("no rebuild after an interrupt", STREAM, "        self.stale = True\n\n    # -- one chunk",
     "\n    # -- one chunk", DEFAULT),
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
    ("the floor goes back with an interrupt", SESSION, "self._floor = max(self._floor, self._delivered - self.lead)",
     "self._floor = max(0, self._delivered - self.lead)", DEFAULT),
    ("the floor stays at the start", SESSION, "self._floor = max(self._floor, self._delivered - self.lead)",
     "self._floor = 0", DEFAULT),
    ("a segment's last block is all the caller's", STREAM, "else max(0, true_end - a)", "else b - a", DEFAULT),
    ("frames before the stream are heard as silence", "rest_fast/models/speech.py",
     "missing = max(0, min(TEMPORAL + frames, -past))", "missing = 0",
     f"{ORACLE}::test_the_oracle_itself_follows_the_decoder_as_a_whole"),
    ("sound is dropped a second too early", SOUND, "reach = back + self.margin + RATE",
     "reach = back + self.margin - RATE", DEFAULT),
    ("a block after close()", SESSION, "if self.closed or self._ready is None:", "if self._ready is None:",
     f"{FAULTS}::test_close_between_a_block_and_its_delivery"),
    ("a block of the old epoch", SESSION, "wanted = self.epoch == epoch and not self.closed",
     "wanted = not self.closed", f"{LIVE}::test_interrupt_during_a_decode_delivers_nothing_old"),
    ("a dropped block stays made", SESSION, "self.stream.unmake(block)", "pass",
     f"{FAULTS}::test_close_while_a_block_is_made_loses_nothing_of_a_snapshot"),
    ("a dropped job leaves its chunk in the context", STREAM,
     "may have been.\"\"\"\n        self.stale = True", "may have been.\"\"\"",
     "tests/streaming/test_stream.py::test_a_job_that_was_run_and_dropped_leaves_a_rebuilt_context"),
    ("no reference for a decoder without context", STREAM, "max(self.context, 1)", "self.context", NO_CONTEXT),
]  # fmt: skip

RESTORING = [
    ("a snapshot without its stale context", STREAM, "stale, history = fields.flag(\"_stale_context\"), ",
     "stale, history = False, ", DEFAULT),
    ("a snapshot without its idle flags", STREAM, "                flag,\n", "                False,\n", DEFAULT),
    ("a snapshot without its epoch", LINE, "fields.integer(\"epoch\", 0)\n", "0\n", DEFAULT),
    ("a snapshot without its format", SESSION, "content.timeline.epoch, content.timeline.sound.format",
     "content.timeline.epoch, None",
     f"{SNAPSHOTS}::test_a_restored_session_knows_its_format"),
    ("a snapshot without its floor", SESSION, "= content.timeline.delivered, content.timeline.floor",
     "= content.timeline.delivered, max(0, content.timeline.delivered - self.lead)", DEFAULT),
    ("latents of a snapshot that wait are lost", LINE,
     "found.delivered = fields.integer(\"_delivered\", 0, found.generated)", "found.delivered = found.generated",
     DEFAULT),
    ("queued segments of a snapshot lost", LINE, "        return deque(pairs)\n", "        return deque()\n", DEFAULT),
    ("the start of a snapshot's sound", LINE, "SoundTimeline.restore(self.sound.rate, start,",
     "SoundTimeline.restore(self.sound.rate, 0,",
     f"{SNAPSHOTS}::test_counts_that_contradict_each_other[committed]"),
    ("a made block is not put back", STREAM, "self.decoder.put_back(block.video)", "pass",
     f"{FAULTS}::test_snapshot_with_a_block_made_and_not_taken"),
    ("a NaN in a cache row is taken", STREAM, "fields.finite(f\"{letter}.{i}\", tensor[:, :, held])", "pass",
     f"{SNAPSHOTS}::test_every_tensor[early]"),
    ("True is a count", STATE, "type(value) is int and low", "isinstance(value, int) and low",
     f"{SNAPSHOTS}::test_every_value[early]"),
    ("a state of the decoder from elsewhere", DECODER, "fields.require(torch.equal(found, facts)",
     "fields.require(True",
     f"{SNAPSHOTS}::test_every_tensor[later]"),
]  # fmt: skip

DECODING = [
    ("the decoder goes on from where it was", DECODER, "(shown, True), False", "(shown, True), self._at_latest",
     DEFAULT),
    ("what was shown is not decoded again", DECODER, "if self._to_repeat:", "if False:", AHEAD),
    ("a segment's last latents stay provisional", DECODER, "provisional = 0 if last else self.ahead",
     "provisional = self.ahead", AHEAD),
    ("no latent is provisional", DECODER, "provisional = 0 if last else self.ahead", "provisional = 0", AHEAD),
    ("the reference's frame is shown", DECODER, "frames[len(frames) % TEMPORAL :] if begins",
     "frames[: len(frames) - len(frames) % TEMPORAL] if begins", AHEAD),
    ("a state that is still needed is forgotten", DECODER, "self._states[1][0] <= floor",
     "self._states[1][0] <= floor + 1",
     DEFAULT),
    ("made pictures survive an interrupt", DECODER, "self._made.clear()\n        while", "while", AHEAD),
    ("the decoder's noise is that of a chunk", "rest_fast/models/vae/codec.py", "latents.shape, noise.DECODER",
     "latents.shape, noise.LATENT", CLEAN),
]  # fmt: skip

SAMPLING = [
    ("a per-step context is rebuilt in one bank", LOOP, "step if context == \"per_step\" else 0", "0",
     PER_STEP + f" {SAMPLER}"),
    ("a context is rebuilt at another step's level", LOOP, "\"last_step\": [last]", "\"last_step\": [0]", SAMPLER),
    ("a context is rebuilt without noise", LOOP, "((1 - t) * latents + t * noise)", "latents", SAMPLER),
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
    ("two purposes share their noise", "rest_fast/noise.py", "LATENT, CONTEXT, DECODER, TEXTURE = 0, 1, 2, 3",
     "LATENT, CONTEXT, DECODER, TEXTURE = 0, 1, 0, 3", NOISE),
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
    ("pictures of a replay are not copied", DECODER, "[cls(part.clone()) for part in parts]",
     "[cls(part) for part in parts]", GRAPH),
]  # fmt: skip

MUTANTS = [Mutant(*row) for row in [*CONTEXT, *TIMELINE, *RESTORING, *DECODING, *SAMPLING, *AUDIO, *GRAPHS]]
