"""Cases of ``frame_cross_attention``, for the tests of all its backends."""

from __future__ import annotations

SHAPES = {
    "odd": {},
    "one_frame": {"frames": 1, "tokens": 5, "audio": 3},
    "one_key": {"frames": 2, "audio": 1, "heads": 1, "dim": 7},
    "one_token": {"frames": 4, "tokens": 1, "heads": 3, "dim": 2},
}
