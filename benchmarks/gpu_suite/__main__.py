"""``python3 benchmarks/gpu_suite [--part NAME] [--out FOLDER] [--seconds N] [--ungated]``"""

from __future__ import annotations

import sys
from pathlib import Path


def start() -> int:
    # By name from the folder above: `benchmarks` itself may be the name of something installed.
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from gpu_suite.command import main

    return main()


if __name__ == "__main__":
    raise SystemExit(start())
