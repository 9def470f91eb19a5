"""Signed videos, read by C2PA's own library, with certificates of our own."""

from __future__ import annotations

import functools
import os
import sys

import numpy as np
import pytest

pytest.importorskip("c2pa", reason="signatures are c2pa-python's")
pytest.importorskip("cryptography", reason="certificates are made by cryptography")
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

import rest_fast
from rest_fast import cli, media
from rest_fast.media import VideoWriter, provenance, read_video
from rest_fast.media.signing import Signer, publish
from tests.kit import certificates, toys
from tests.kit.command import refused, words, write_inputs


def video(path, source_type=provenance.SYNTHETIC):
    pictures = np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), dtype=np.uint8)
    with VideoWriter(path, 32, 32, sample_rate=16000, source_type=source_type) as writer:
        writer.write(pictures, np.zeros(5120, np.float32))
    return path


def origins(manifest) -> list[tuple[str, str]]:
    (actions,) = (a["data"]["actions"] for a in manifest["assertions"] if a["label"].startswith("c2pa.actions"))
    return [(action["action"], action["digitalSourceType"].rpartition("/")[2]) for action in actions]


@pytest.fixture(scope="module")
def authority():
    return certificates.chain()


@pytest.mark.parametrize("ending, kind", [
    (".mp4", provenance.SYNTHETIC), (".m4v", provenance.SYNTHETIC), (".mov", provenance.COMPOSITE),
])  # fmt: skip
def test_a_signed_video_is_trusted_plays_and_says_where_it_is_from(authority, tmp_path, ending, kind):
    chain, key, root = authority
    plain, signed = video(tmp_path / f"plain{ending}", kind), tmp_path / f"signed{ending}"
    Signer(chain, key)(plain, signed)
    state, wrong, manifest = certificates.verified(signed, root)
    assert (state, wrong) == ("Trusted", [])
    assert origins(manifest) == [("c2pa.created", kind)] and manifest["title"] == signed.name
    assert manifest["claim_generator_info"][0]["name"] == "rest_fast"
    assert manifest["claim_generator_info"][0]["version"] == rest_fast.__version__
    assert manifest["signature_info"]["common_name"] == "signer"
    np.testing.assert_array_equal(read_video(plain)[0], read_video(signed)[0])
    assert provenance.read(signed) == kind


@pytest.mark.parametrize("algorithm", certificates.KINDS)
def test_the_key_decides_on_the_algorithm(tmp_path, algorithm):
    chain, key, root = certificates.chain(algorithm)
    signer = Signer(chain, key)
    for name in ("a.mp4", "b.mp4"):  # a signer signs as many as it is given
        signer(video(tmp_path / "plain.mp4"), tmp_path / name)
        state, _, manifest = certificates.verified(tmp_path / name, root)
        assert state == "Trusted" and manifest["signature_info"]["alg"].lower() == algorithm


def test_whoever_changes_a_picture_or_does_not_know_the_root_is_told(authority, tmp_path):
    chain, key, root = authority
    Signer(chain, key)(video(tmp_path / "plain.mp4"), tmp_path / "a.mp4")
    assert certificates.verified(tmp_path / "a.mp4", certificates.chain()[2])[:2] == (
        "Valid",
        ["signingCredential.untrusted"],
    )
    data = bytearray((tmp_path / "a.mp4").read_bytes())
    data[data.rindex(b"mdat") + 100] ^= 1
    (tmp_path / "a.mp4").write_bytes(data)
    assert certificates.verified(tmp_path / "a.mp4", root)[:2] == ("Invalid", ["assertion.bmffHash.mismatch"])


def test_files_as_openssl_writes_them(authority, tmp_path):
    """A key of SEC 1, which C2PA's library does not read, with the parameters of its curve in front."""
    chain, _, _ = authority
    root_key, key = certificates.KINDS["es256"](), certificates.KINDS["es256"]()
    root = certificates.certificate("root", root_key, "root", root_key, authority=True)
    chain = certificates.certificate("signer", key, "root", root_key, authority=False) + root
    parameters = b"-----BEGIN EC PARAMETERS-----\nBggqhkjOPQMBBw==\n-----END EC PARAMETERS-----\n"
    traditional = serialization.PrivateFormat.TraditionalOpenSSL
    (tmp_path / "key.pem").write_bytes(parameters + certificates.pem(key, form=traditional))
    (tmp_path / "chain.pem").write_bytes(chain)
    Signer(tmp_path / "chain.pem", str(tmp_path / "key.pem"))(video(tmp_path / "a.mp4"), tmp_path / "b.mp4")
    assert certificates.verified(tmp_path / "b.mp4", root)[0] == "Trusted"


@functools.cache
def refused_pairs():
    chain, key, root = certificates.chain()
    other = certificates.KINDS["es256"]()
    odd = ec.generate_private_key(certificates.P256K)
    der = serialization.load_pem_private_key(key, None).private_bytes(
        serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return {
        "no certificate": (b"", key, "certificates: expected certificates in PEM"),
        "a key for a certificate": (key, key, "certificates: expected certificates in PEM"),
        "a certificate for a key": (chain, chain, "key: expected an EC key on .* in PEM and without a password"),
        "DER": (chain, der, "key: expected an EC key on .* in PEM and without a password"),
        "a password": (chain, certificates.pem(other, b"x"), "without a password, got Password was not given"),
        "another curve": (chain, certificates.pem(odd), "key: expected an EC key on P-256, .* got secp256k1"),
        "another's key": (chain, certificates.pem(other), "certificates and key: expected a key that is the first"),
        "the root first": (root + chain, key, "certificates and key: expected .* chain that C2PA allows"),
        "out of date": (*certificates.chain(days=(-9, -1))[:2], "certificates and key: expected"),
        "no such file": ("/no/such.pem", key, "certificates '/no/such.pem': expected a file .* got No such file"),
    }


@pytest.mark.parametrize("case", refused_pairs())
def test_what_would_not_sign_is_refused_before_there_is_a_video(case):
    chain, key, message = refused_pairs()[case]
    with pytest.raises(rest_fast.SigningError, match=message) as caught:
        Signer(chain, key)
    assert "\n" not in str(caught.value) and b"PRIVATE" not in str(caught.value).encode()


def test_videos_that_are_refused(authority, tmp_path):
    signer = Signer(*authority[:2])
    with pytest.raises(rest_fast.SigningError, match="expected a video that says its digital source type"):
        signer(video(tmp_path / "a.mp4", None), tmp_path / "b.mp4")
    with pytest.raises(rest_fast.SigningError, match=r"a.mkv': expected a name that ends in .mp4, .m4v, .mov"):
        signer(tmp_path / "a.mkv", tmp_path / "b.mkv")
    with pytest.raises(rest_fast.SigningError, match=r"no.mp4': expected a file .* got No such file"):
        signer(tmp_path / "no.mp4", tmp_path / "b.mp4")
    assert os.listdir(tmp_path) == ["a.mp4"]


@pytest.mark.parametrize("target", ["a.mp4", "link.mp4"])
def test_a_video_is_not_signed_into_itself(authority, tmp_path, target):
    """It would be emptied before it is read."""
    made = video(tmp_path / "a.mp4")
    (tmp_path / "link.mp4").symlink_to(made)
    before = made.read_bytes()
    with pytest.raises(rest_fast.SigningError, match=r"target .* expected another file than the video"):
        Signer(*authority[:2])(made, tmp_path / target)
    assert made.read_bytes() == before


def test_a_failure_leaves_the_video_and_nothing_else(tmp_path):
    def fails(source, target):
        target.write_bytes(b"half")
        raise OSError("disk full")

    before = video(tmp_path / "a.mp4").read_bytes()
    with pytest.raises(OSError, match="disk full"):
        publish(fails, tmp_path / "a.mp4", tmp_path / "a.mp4")
    assert os.listdir(tmp_path) == ["a.mp4"] and (tmp_path / "a.mp4").read_bytes() == before


def test_render_signs_the_whole_file(authority, model, avatar, tmp_path):
    chain, key, root = authority
    out = tmp_path / "a.mp4"
    rest_fast.render(model, avatar, media.Audio(toys.sound(16000, 0.64)[:, None], 16000), out, sign=Signer(chain, key))
    state, wrong, manifest = certificates.verified(out, root)
    assert (state, wrong) == ("Trusted", []) and manifest["title"] == "a.mp4"
    assert len(read_video(out)[0]) == 16 and os.listdir(tmp_path) == ["a.mp4"]


def test_the_command_signs_and_refuses_before_a_model_is_loaded(authority, tmp_path, capsys, monkeypatch):
    chain, key, root = authority
    (tmp_path / "in").mkdir()
    inputs, out = write_inputs(tmp_path / "in"), tmp_path / "out" / "a.mp4"
    out.parent.mkdir()
    (inputs / "chain.pem").write_bytes(chain)
    (inputs / "key.pem").write_bytes(key)
    argv = words(inputs, out, "--c2pa-cert", inputs / "chain.pem", "--c2pa-key", inputs / "key.pem")
    assert cli.main(argv) == 0
    state, _, manifest = certificates.verified(out, root)
    assert state == "Trusted" and manifest["title"] == "a.mp4" and os.listdir(out.parent) == ["a.mp4"]
    capsys.readouterr()
    monkeypatch.setattr("rest_fast.load", lambda *_, **__: pytest.fail("loaded a model"))
    wrong = [str(inputs / "key.pem") if word == str(inputs / "chain.pem") else word for word in argv]
    refused(capsys, wrong, "error: certificates ", "expected certificates in PEM, yours first")


def test_what_is_said_without_the_library(authority, monkeypatch):
    monkeypatch.setitem(sys.modules, "c2pa", None)
    with pytest.raises(rest_fast.SigningError, match=r"pip install 'rest_fast\[c2pa\]'"):
        Signer(*authority[:2])
