"""What is said of generated pictures: labels that people read, and a packet that programs find."""

from __future__ import annotations

import numpy as np
import pytest

from rest_fast.media import MediaError, VideoWriter, provenance, read_video


def write(path, source_type):
    video = np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), dtype=np.uint8)
    with VideoWriter(path, 32, 32, sample_rate=16000, source_type=source_type) as writer:
        writer.write(video, np.zeros(5120, np.float32))


@pytest.mark.parametrize("kind", [provenance.SYNTHETIC, provenance.COMPOSITE])
def test_the_packet_is_where_tools_look_for_it_and_the_video_plays(tmp_path, kind):
    plain, marked = tmp_path / "plain.mp4", tmp_path / "marked.mp4"
    write(plain, None)
    write(marked, kind)
    assert provenance.read(plain) is None and provenance.read(marked) == kind
    np.testing.assert_array_equal(read_video(plain)[0], read_video(marked)[0])
    data = marked.read_bytes()
    # of ISO 14496-12: a box of type uuid with XMP's extended type, as long as the rest of the file
    at = data.index(bytes.fromhex("be7acfcb97a942e89c71999491e3afac")) - 8
    assert data[at + 4 : at + 8] == b"uuid" and int.from_bytes(data[at : at + 4], "big") == len(data) - at
    assert f"http://cv.iptc.org/newscodes/digitalsourcetype/{kind}".encode() in data[at:]


def test_a_file_of_nothing_and_one_that_is_cut(tmp_path):
    (tmp_path / "a").write_bytes(b"")
    assert provenance.read(tmp_path / "a") is None
    (tmp_path / "a").write_bytes(b"\0\0\0\0free")
    assert provenance.read(tmp_path / "a") is None


@pytest.mark.parametrize("side", [64, 128, 256, 512])
def test_a_label_is_read_on_any_ground(side):
    """Letters are white where the ground, white or black, has become dark; nothing else changes."""
    label = provenance.Label("AI-generated", side, side)
    for level in (0, 255):
        video = np.full((2, side, side, 3), level, np.uint8)
        made = label(video)
        assert (video == level).all() and made.shape == video.shape
        changed = (made != level).any((0, 3)) if level else (made > 0).any((0, 3))
        rows, columns = np.nonzero(changed)
        assert rows.min() > 0.75 * side and columns.max() < side
        here = made[0, rows.min() :, : columns.max() + 1]
        assert here.max() > 200 and np.median(here) < 100


def test_labels_that_cannot_be_read():
    with pytest.raises(MediaError, match="expected one line of text"):
        provenance.Label(" ", 64, 64)
    with pytest.raises(MediaError, match="expected one line of text"):
        provenance.Label("a\nb", 64, 64)
    with pytest.raises(MediaError, match="expected a text that can be read in 64 pixels, got 40 letters"):
        provenance.Label(40 * "m", 64, 64)
