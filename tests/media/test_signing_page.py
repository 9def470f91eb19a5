"""docs/responsible_use.md: its commands make a certificate that signs."""

from __future__ import annotations

import re
import shutil
import subprocess
import textwrap
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("c2pa", reason="signatures are c2pa-python's")
from rest_fast.media import VideoWriter, provenance
from rest_fast.media.signing import Signer
from tests.kit import certificates

PAGE = Path(__file__).parents[2] / "docs" / "responsible_use.md"


@pytest.mark.skipif(not shutil.which("openssl"), reason="openssl is not here")
def test_the_pages_certificate_signs(tmp_path):
    (commands,) = re.findall(r"```\n(  openssl .*?)  ```", PAGE.read_text(), re.DOTALL)
    subprocess.run(["sh", "-ec", textwrap.dedent(commands)], cwd=tmp_path, check=True, capture_output=True)
    synthetic = {"source_type": provenance.SYNTHETIC}
    with VideoWriter(tmp_path / "plain.mp4", 32, 32, sample_rate=16000, **synthetic) as writer:
        writer.write(np.zeros((8, 32, 32, 3), np.uint8), np.zeros(5120, np.float32))
    Signer(tmp_path / "chain.pem", tmp_path / "key.pem")(tmp_path / "plain.mp4", tmp_path / "signed.mp4")
    state, wrong, _ = certificates.verified(tmp_path / "signed.mp4", (tmp_path / "root.pem").read_bytes())
    assert (state, wrong) == ("Trusted", [])
