"""Faults of FlashHead's step and of what stands around it."""

from __future__ import annotations

FOLDER = "rest_fast/streaming"
STEP, STREAM, DIT = f"{FOLDER}/windows.py", f"{FOLDER}/flashhead.py", "rest_fast/models/flashhead/dit.py"
STEPS, GRAPH = "tests/streaming/test_windows.py", "tests/streaming/test_flashhead_graphs.py"
PLAN = "tests/streaming/test_windows_plan.py"

WINDOWS = [
    ("windows: motion is not loaded", STEP, "        self.z[slot, :held].copy_(window.motion[0])\n", "", STEPS),
    ("windows: idle lanes move the first slot", STEP, "rows += [(self.slots, IDLE,", "rows += [(0, IDLE,", STEPS),
    ("windows: all lanes at the level of the first", STEP, "self.levels[t.level.timestep]",
     "self.levels[turns[0].level.timestep]", STEPS),
    ("windows: noise of the first slot", STEP, "t.slot * self.steps + t.fresh", "t.fresh", STEPS),
    ("windows: the initial noise comes again", STREAM, "(i + 1) % count", "i", STEPS),
    ("windows: motion of two latents always", STREAM, "held, count = job.window.motion.shape[1], len",
     "held, count = 8, len", STEPS),
    ("windows: lanes share the keys of the first", STEP, "(t.slot, lane,", "(t.slot, 0,", STEPS),
    ("windows: the audio of the slot of the first lane", STEP, "pool.index_copy_(0, slot.long(), made)",
     "pool.index_copy_(0, 0 * slot.long(), made)", STEPS),
    ("windows: the norm before the audio learned nothing", DIT, "eps=self.eps, norm=\"affine\")",
     "eps=self.eps, norm=\"layer\")", STEPS),
    ("windows: the norm behind the audio is that of REST", DIT,
     "None, scale2, shift2, y, eps=self.eps, norm=\"layer\")", "None, scale2, shift2, y, eps=self.eps)", STEPS),
    ("windows: heads turn as REST's", DIT, "eps=eps, rope=\"by_head\")", "eps=eps)", STEPS),
    ("windows: frames of the next chunk", STREAM, "frames=part.clone())", "frames=part)", GRAPH),
    ("windows: memory of a graph is not counted", f"{FOLDER}/windows_plan.py", "part(*part.given) if on_gpu else []",
     "[]", PLAN),
]  # fmt: skip
