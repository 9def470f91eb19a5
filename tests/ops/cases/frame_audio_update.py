"""Cases of ``frame_audio_update``, for the tests of all its backends."""

from __future__ import annotations

SHAPES = {
    "odd": {},
    "one_frame": {"frames": 1, "tokens": 5, "audio": 3},
    "one_head": {"frames": 2, "audio": 4, "heads": 1, "dim": 7},
    "one_token": {"frames": 4, "tokens": 1, "heads": 3, "dim": 2},
    "a_session_without_guidance": {"lanes": 1, "slot": (0,), "slots": 1},
    "lanes_in_any_order": {"lanes": 5, "slot": (3, -1, 0, 1), "slots": 4},
    "nobody_hears": {"lanes": 2, "slot": (-1,), "slots": 1},
}
