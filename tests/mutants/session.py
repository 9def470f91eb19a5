"""Of a live stream: session, its snapshots, the block decoder, sampler, cache, noise."""

from __future__ import annotations

from tests.mutants import Mutant

ORACLE = "tests/test_session_oracle.py"
DEFAULT = f"{ORACLE}::test_a_session_shows_what_the_oracle_says[default]"
PER_STEP = f"{ORACLE}::test_a_session_shows_what_the_oracle_says[per_step]"
CLEAN = f"{ORACLE}::test_a_session_shows_what_the_oracle_says[clean_noise_of_the_decoder]"
AHEAD = f"{ORACLE}::test_a_session_shows_what_the_oracle_says[lookahead_1]"
ALONE = f"{ORACLE}::test_a_session_shows_what_the_oracle_says[absolute_without_guidance]"
NO_CONTEXT = f"{ORACLE}::test_a_decoder_that_looks_ahead_begins_with_the_reference_when_no_context_does"
FAULTS = "tests/test_session_faults.py"
LIVE = "tests/test_session_live.py"
SNAPSHOTS = "tests/test_session_snapshots.py"
SAMPLER = "tests/test_sampler.py"
CACHE = "tests/test_cache.py"
NOISE = "tests/test_noise.py"

SESSION = "rest_fast/session.py"
STATE = "rest_fast/session_state.py"
DECODER = "rest_fast/block_decoder.py"

CONTEXT = [
    ("no rebuild after a cut segment", SESSION, "self._stale_context = keep < self._chunk",
     "self._stale_context = False", DEFAULT),
    ("a context rebuilt with the noise of the next chunk", SESSION, "noise.CONTEXT) for j", "noise.LATENT) for j",
     DEFAULT),
    ("codes of a rebuilt context zeroed", SESSION, "torch.stack([p.code for p in part])[None]",
     "torch.stack([0 * p.code for p in part])[None]", DEFAULT),
    ("the oldest latents as context", SESSION, "list(self._history)[len(self._history) - count :]",
     "list(self._history)[:count]", DEFAULT),
    ("no rebuild after an interrupt", SESSION, "self._stale_context or shown != self._next", "self._stale_context",
     DEFAULT),
    ("an interrupt at the end forgets a cut", SESSION, "self._stale_context or shown != self._next",
     "shown != self._next", DEFAULT),
    ("no reference before too few latents", SESSION, "min(-(-self._next // self._chunk) * self._chunk, self._context)",
     "min(self._next // self._chunk * self._chunk, self._context)", DEFAULT),
    ("rows not opened for a rebuilt context", SESSION, "self._open_rows()\n        count", "count", DEFAULT),
    ("the photo's sink in the branch without guidance", SESSION, "self._cache.open(1, *self.model.null_sink)",
     "self._cache.open(1, self.avatar.sink_k, self.avatar.sink_v)", DEFAULT),
    ("noise counted by kept latents", SESSION, "self._noise_index += self._chunk", "self._noise_index += keep",
     DEFAULT),
    ("dropped latents stay in the history", SESSION, "self._history.pop()", "pass", DEFAULT),
]  # fmt: skip

TIMELINE = [
    ("an idle chunk hears what is queued", SESSION, "limit = border\n", "limit = self._sound.end\n", DEFAULT),
    ("a segment hears the next one", SESSION, "min(keep, end - first), self._sound.sample_of(TEMPORAL * end)",
     "min(keep, end - first), self._sound.end", DEFAULT),
    ("an idle chunk takes the place of queued sound", SESSION, "self._sound.insert_silence(border",
     "0 and self._sound.insert_silence(border", DEFAULT),
    ("queued speech survives an interrupt", SESSION, "self._sound.truncate(", "(lambda _: None)(", DEFAULT),
    ("queued segment ends survive an interrupt", SESSION, "self._pending.clear()\n        self._segments.clear()",
     "self._pending.clear()", DEFAULT),
    ("a shown time is rounded down", SESSION, "math.ceil(shown_pts / seconds", "math.floor(shown_pts / seconds",
     DEFAULT),
    ("_floor goes back with an interrupt", SESSION, "self._floor = max(self._floor, self._delivered - self.lead)",
     "self._floor = max(0, self._delivered - self.lead)", DEFAULT),
    ("_floor stays at the start", SESSION, "self._floor = max(self._floor, self._delivered - self.lead)",
     "self._floor = 0", DEFAULT),
    ("a segment's last block is all the caller's", SESSION, "else max(0, true_end - a)", "else b - a", DEFAULT),
    ("frames before the stream are heard as silence", SESSION, "before = max(0, min(count, -frame))", "before = 0",
     f"{ORACLE}::test_the_oracle_itself_follows_the_decoder_as_a_whole"),
    ("sound is dropped a second too early", "rest_fast/sound.py", "reach = back + self.margin + RATE",
     "reach = back + self.margin - RATE", DEFAULT),
    ("a block after close()", SESSION, "if self.closed or self._ready is None:", "if self._ready is None:",
     f"{FAULTS}::test_close_between_a_block_and_its_delivery"),
    ("a block of the old epoch", SESSION, "if self.epoch == epoch and not self.closed:", "if not self.closed:",
     f"{LIVE}::test_interrupt_during_a_decode_delivers_nothing_old"),
    ("no reference for a decoder without context", SESSION, "max(self._context, 1)", "self._context", NO_CONTEXT),
]  # fmt: skip

RESTORING = [
    ("a snapshot without its stale context", STATE, "stale, epoch = fields.flag(\"_stale_context\"), ",
     "stale, epoch = False, ", DEFAULT),
    ("a snapshot without its idle flags", STATE, "            flag,\n", "            False,\n", DEFAULT),
    ("a snapshot without its epoch", STATE, "fields.integer(\"epoch\", 0)\n", "0\n", DEFAULT),
    ("a snapshot without its format", STATE, "form if sound.fixed else None", "None",
     f"{SNAPSHOTS}::test_a_restored_session_knows_its_format"),
    ("a snapshot without its floor", STATE, "delivered, floor, stale, epoch), strict", "delivered, max(0, delivered - "
     "session.lead), stale, epoch), strict", DEFAULT),
    ("pending latents of a snapshot lost", STATE, "deque(history[len(history) - pending :])", "deque()", DEFAULT),
    ("queued segments of a snapshot lost", STATE, "    return deque(pairs)\n", "    return deque()\n", DEFAULT),
    ("the start of a snapshot's sound", STATE, "SoundTimeline.restore(session._sound.rate, start,",
     "SoundTimeline.restore(session._sound.rate, 0,",
     f"{SNAPSHOTS}::test_counts_that_contradict_each_other[committed]"),
    ("a made block is not put back", SESSION, "self._decoder.put_back(ready.video)", "pass",
     f"{FAULTS}::test_snapshot_with_a_block_made_and_not_taken"),
    ("a NaN in a cache row is taken", STATE, "fields.finite(f\"{letter}.{row}\", tensor[:, :, held])", "pass",
     f"{SNAPSHOTS}::test_every_tensor[early]"),
    ("True is a count", "rest_fast/state_fields.py", "type(value) is int and low", "isinstance(value, int) and low",
     f"{SNAPSHOTS}::test_every_value[early]"),
    ("a state of the decoder from elsewhere", DECODER, "fields.require(torch.equal(found, facts)",
     "fields.require(True",
     f"{SNAPSHOTS}::test_every_tensor[later]"),
]  # fmt: skip

DECODING = [
    ("the decoder goes on from where it was", DECODER, "(shown, True), False", "(shown, True), self._whole", DEFAULT),
    ("what was shown is not decoded again", DECODER, "if self._behind:", "if False:", AHEAD),
    ("a segment's last latents stay provisional", DECODER, "provisional = 0 if last else self.ahead",
     "provisional = self.ahead", AHEAD),
    ("no latent is provisional", DECODER, "provisional = 0 if last else self.ahead", "provisional = 0", AHEAD),
    ("the reference's frame is shown", DECODER, "frames[1 if final < 0 else 0 :]",
     "frames[0 if final < 0 else 0 :][:-1]",
     AHEAD),
    ("made pictures survive an interrupt", DECODER, "self._made.clear()\n        while", "while", AHEAD),
    ("the decoder's noise is that of a chunk", "rest_fast/models/vae.py", "latents.shape, noise.DECODER",
     "latents.shape, noise.LATENT", CLEAN),
]  # fmt: skip

SAMPLING = [
    ("a per-step context is rebuilt in one ring", "rest_fast/sampler.py", "index, max(step, 0), work, audio)",
     "index, 0, work, audio)", PER_STEP + f" {SAMPLER}"),
    ("a context is rebuilt at another step's level", "rest_fast/sampler.py", "\"last_step\": self.sampling.steps - 1",
     "\"last_step\": 0", SAMPLER),
    ("a context is rebuilt without noise", "rest_fast/sampler.py", "(1 - t) * z + t * noise, index", "z, index",
     SAMPLER),
    ("clean contexts are not evaluated", "rest_fast/sampler.py", "if cache.stream.context == \"clean\":", "if False:",
     SAMPLER),
    ("all steps read one ring", "rest_fast/sampler.py", "lanes[step % cache.rings]", "lanes[0]", SAMPLER),
    ("guidance the other way round", "rest_fast/sampler.py", "v[:count], v[-count:], guidance",
     "v[-count:], v[:count], guidance", SAMPLER),
    ("the unconditional branch hears", "rest_fast/sampler.py", "torch.cat([codes, torch.zeros_like(codes)])",
     "torch.cat([codes, codes])", SAMPLER),
    ("an opened row remembers its age", "rest_fast/cache.py", "self.committed[row], self._opened[row] = 0, True",
     "self._opened[row] = True", SAMPLER),
    ("a restored row is young", "rest_fast/cache.py", "self.k[:, row], self.v[:, row], self.committed[row] = state",
     "self.k[:, row], self.v[:, row], _ = state", CACHE),
    ("keys are not turned", "rest_fast/cache.py", "and any(full):", "and any(full) and False:", CACHE),
    ("every slot is held", "rest_fast/cache.py", "[*range(start), *range(start + self.chunk, valid)]",
     "[*range(valid)]",
     f"{SNAPSHOTS}::test_what_is_written_before_it_is_read_may_be_anything[early]"),
    ("two purposes share their noise", "rest_fast/noise.py", "LATENT, CONTEXT, DECODER, TEXTURE = 0, 1, 2, 3",
     "LATENT, CONTEXT, DECODER, TEXTURE = 0, 1, 0, 3", NOISE),
    ("the high word of a latent's index", "rest_fast/noise.py", "latent >> 32, purpose", "0, purpose", NOISE),
    ("a negative index", "rest_fast/noise.py", "    _require(\"latent\", latent, 64)\n", "", NOISE),
]  # fmt: skip

MUTANTS = [Mutant(*row) for row in [*CONTEXT, *TIMELINE, *RESTORING, *DECODING, *SAMPLING]]
