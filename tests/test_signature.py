"""Who signed a package, and what it takes to change that unseen."""

from __future__ import annotations

import json
import shutil
import stat
import subprocess
from pathlib import Path

import pytest

from edgekit.errors import IntegrityError, SignatureError, UsageError
from edgekit.package import Package
from edgekit.signature import TrustedKeys, new_key, short, sign, signed
from tests.stages import pair
from tests.tiny import WEIGHT, tiny_model, tiny_package


@pytest.fixture
def key(tmp_path: Path) -> Path:
    new_key(tmp_path / "team.key")
    return tmp_path / "team.key"


def public(key: Path) -> Path:
    return key.with_name(f"{key.name}.pub")


def test_a_key_pair_is_pem_that_openssl_reads_and_its_fingerprint_is_openssls(tmp_path: Path) -> None:
    fingerprint = new_key(tmp_path / "k")
    assert stat.S_IMODE((tmp_path / "k").stat().st_mode) == 0o600
    assert b"BEGIN PRIVATE KEY" in (tmp_path / "k").read_bytes()
    assert b"BEGIN PUBLIC KEY" in (tmp_path / "k.pub").read_bytes()
    with pytest.raises(UsageError, match="overwritten is lost"):
        new_key(tmp_path / "k")
    if shutil.which("openssl") is None:
        pytest.skip("needs openssl, to compare the fingerprint with")
    der = subprocess.run(
        ["openssl", "pkey", "-pubin", "-in", tmp_path / "k.pub", "-outform", "der"], capture_output=True, check=True
    ).stdout
    assert subprocess.run(["sha256sum"], input=der, capture_output=True).stdout.decode().split()[0] == fingerprint


def test_a_signed_package_is_trusted_and_its_manifest_is_untouched(tiny: Package, key: Path) -> None:
    before = (tiny.path / "manifest.json").read_bytes()
    assert signed(tiny) is None
    fingerprint = sign(tiny, key)
    assert (tiny.path / "manifest.json").read_bytes() == before
    assert TrustedKeys([public(key)]).check(Package.open(tiny.path)) == fingerprint
    state = signed(tiny)
    assert state is not None
    assert (state.keys, state.fits) == ((fingerprint,), True)


@pytest.mark.parametrize("change", ["variant", "stray", "stray link", "manifest", "signature", "text", "none"])
def test_whatever_is_changed_afterwards_is_seen(tiny: Package, key: Path, change: str) -> None:
    sign(tiny, key)
    signature = tiny.path / "signature.json"
    match change:
        case "variant":
            with tiny.edit() as writer:
                writer.path("fp16.onnx").write_bytes(tiny_model().SerializeToString())
                writer.put(writer.variant_of("fp16.onnx", id="fp16", precision="fp16", format="onnx", target="any"))
                writer.commit()
            what = "changed after it was signed"
        case "stray":
            (tiny.path / "helper.so").write_bytes(b"x")
            what = "'helper.so' in 'tiny.edge' is no part"
        case "stray link":
            (tiny.path / "engines").symlink_to("/etc")
            what = "'engines' in 'tiny.edge' is no part"
        case "manifest":
            other = tiny_package(tiny.path.with_name("other.edge"), weight=2 * WEIGHT)
            shutil.copytree(other.path, tiny.path, dirs_exist_ok=True)
            what = "changed after it was signed"
        case "signature":
            document = json.loads(signature.read_text())
            text = document["signatures"][0]["signature"]
            document["signatures"][0]["signature"] = ("B" if text[0] == "A" else "A") + text[1:]
            signature.write_text(json.dumps(document))
            what = "is false"
        case "text":
            signature.write_text("{}")
            what = "cannot be read"
        case _:
            signature.unlink()
            what = "is not signed"
    with pytest.raises(SignatureError, match=what):
        TrustedKeys([public(key)]).check(Package.open(tiny.path))


def test_the_manifests_that_a_signature_states_are_not_believed(tiny: Package, key: Path, tmp_path: Path) -> None:
    """A signature of another package, made to state this one's manifests, does not fit."""
    other = tiny_package(tmp_path / "other.edge", samples=3)
    sign(other, key)
    sign(tiny, key)
    mine, theirs = (json.loads((p.path / "signature.json").read_text()) for p in (tiny, other))
    (tiny.path / "signature.json").write_text(json.dumps({**mine, "signatures": theirs["signatures"]}))
    with pytest.raises(SignatureError, match="is false"):
        TrustedKeys([public(key)]).check(tiny)


def test_several_keys_sign_and_any_trusted_one_will_do(tiny: Package, key: Path, tmp_path: Path) -> None:
    first = sign(tiny, key)
    second = new_key(tmp_path / "next.key")
    with pytest.raises(SignatureError, match=f"signed by {short(first)}, trusted here is {short(second)}"):
        TrustedKeys([tmp_path / "next.key.pub"]).check(tiny)
    sign(tiny, tmp_path / "next.key")
    sign(tiny, tmp_path / "next.key")
    for one, fingerprint in ((public(key), first), (tmp_path / "next.key.pub", second)):
        assert TrustedKeys([one]).check(tiny) == fingerprint
    state = signed(tiny)
    assert state is not None
    assert state.keys == (first, second)


def test_a_stages_variants_are_covered_and_it_cannot_be_changed_between_check_and_use(
    tmp_path: Path, key: Path
) -> None:
    package = pair(tmp_path / "p")
    sign(package, key)
    keys = TrustedKeys([public(key)])
    opened = Package.open(package.path)
    keys.check(opened)
    with Package.open(package.path / "decoder.edge").edit() as writer:
        source = Package.open(package.path / "decoder.edge").path / "fp32.onnx"
        writer.path("fp16.onnx").write_bytes(source.read_bytes())
        writer.put(writer.variant_of("fp16.onnx", id="fp16", precision="fp16", format="onnx", target="any"))
        writer.commit()
    with pytest.raises(IntegrityError, match="not the model that was exported with it"):
        opened.stages()
    with pytest.raises(SignatureError, match=r"decoder\.edge/manifest\.json is another one"):
        keys.check(Package.open(package.path))


def test_a_package_that_is_damaged_is_not_signed(tiny: Package, key: Path) -> None:
    data = (tiny.path / "int8.onnx").read_bytes()
    (tiny.path / "int8.onnx").write_bytes(data[:-1] + b"\0")
    with pytest.raises(IntegrityError, match="was changed"):
        sign(tiny, key)
    assert not (tiny.path / "signature.json").exists()


def test_what_is_no_key_is_said(tiny: Package, key: Path, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no key")
    for wrong, what in (("text", "holds no private key"), ("team.key.pub", "holds no private"), ("none", "cannot be")):
        with pytest.raises(UsageError, match=what):
            sign(tiny, tmp_path / wrong)
    for wrong, what in (("text", "holds no public key"), ("team.key", "is a private key"), ("none", "cannot be read")):
        with pytest.raises(UsageError, match=what):
            TrustedKeys([tmp_path / wrong])
    trusted = TrustedKeys([public(key)])
    fingerprint = sign(tiny, key)
    public(key).write_text("gone")
    with pytest.raises(UsageError):
        trusted.reload()
    assert trusted.check(tiny) == fingerprint


def test_keys_of_other_kinds_and_with_passwords_are_refused_by_name(tiny: Package, tmp_path: Path) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("needs openssl, to make other kinds of keys")
    run = ["openssl", "genpkey", "-algorithm"]
    subprocess.run([*run, "X25519", "-out", tmp_path / "x"], check=True, capture_output=True)
    subprocess.run(
        [*run, "ED25519", "-aes256", "-pass", "pass:1", "-out", tmp_path / "p"], check=True, capture_output=True
    )
    with pytest.raises(UsageError, match="is not Ed25519"):
        sign(tiny, tmp_path / "x")
    with pytest.raises(UsageError, match="has a password"):
        sign(tiny, tmp_path / "p")
