from __future__ import annotations

import io
import wave
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgekit import AudioPreprocess, ImagePreprocess
from edgekit.errors import InputError
from edgekit.preprocess import resample, tensor_from_file
from tests.data import data_path


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def wav(samples: np.ndarray, rate: int, *, width: int = 2, channels: int = 1) -> bytes:
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(width)
        file.setframerate(rate)
        file.writeframes(samples.tobytes())
    return buffer.getvalue()


def test_mean_and_std_in_the_order_of_the_channels() -> None:
    red = Image.new("RGB", (8, 8), (255, 0, 51))
    rgb = ImagePreprocess(height=4, width=4, mean=(0.5, 0.25, 0.0), std=(0.5, 0.25, 0.1))
    np.testing.assert_allclose(rgb.from_image(red)[0, :, 0, 0], [1, -1, 2], atol=1e-6)
    bgr = ImagePreprocess(height=4, width=4, color="BGR", scale=1.0, mean=(103.94, 116.78, 123.68))
    np.testing.assert_allclose(bgr.from_image(red)[0, :, 0, 0], [51 - 103.94, -116.78, 255 - 123.68], rtol=1e-6)


def test_layouts_and_types() -> None:
    grey = Image.new("L", (6, 6), 200)
    assert ImagePreprocess(height=5, width=7).from_image(grey).shape == (1, 3, 5, 7)
    assert ImagePreprocess(height=5, width=7, layout="NHWC").from_image(grey).shape == (1, 5, 7, 3)
    assert ImagePreprocess(height=5, width=7, color="L", dtype="uint8").from_image(grey).max() == 200
    assert ImagePreprocess(height=5, width=7, dtype="float16").from_image(grey).dtype == np.float16


def test_letterbox_keeps_the_aspect_ratio_and_pads() -> None:
    wide = Image.new("L", (100, 50), 255)
    out = ImagePreprocess(height=64, width=64, color="L", resize="letterbox", pad=0).from_image(wide)[0, 0]
    assert out[:16].max() == 0
    assert out[48:].max() == 0
    assert out[16:48].min() == 1


def test_crop_covers_the_target() -> None:
    wide = Image.new("L", (100, 50), 0)
    wide.paste(255, (25, 0, 75, 50))
    out = ImagePreprocess(height=32, width=32, color="L", resize="crop").from_image(wide)
    assert out.shape == (1, 1, 32, 32)
    assert out[0, 0, :, 2:-2].min() > 0.99


def test_a_real_photograph() -> None:
    out = tensor_from_file(data_path("img_samples/parrot.jpg"), ImagePreprocess(height=224, width=224))
    assert out.shape == (1, 3, 224, 224)
    assert 0.1 < out.mean() < 0.9


def test_exif_rotation_is_applied() -> None:
    image = Image.new("L", (4, 2), 0)
    image.putpixel((0, 0), 255)
    exif = image.getexif()
    exif[0x0112] = 6  # turn right by 90 degrees
    buffer = io.BytesIO()
    image.save(buffer, "TIFF", exif=exif)
    out = ImagePreprocess(height=4, width=2, color="L").from_bytes(buffer.getvalue(), name="x.tiff")
    assert out[0, 0].argmax() == 1


@pytest.mark.parametrize("data", [b"", b"not an image", b"\x89PNG\r\n\x1a\n"])
def test_a_broken_image_is_one_sentence(data: bytes) -> None:
    with pytest.raises(InputError, match=r"'x\.png' cannot be decoded"):
        ImagePreprocess(height=4, width=4).from_bytes(data, name="x.png")


def test_a_truncated_image_is_one_sentence() -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64), np.uint8).astype(np.uint8))
    with pytest.raises(InputError, match="cannot be decoded"):
        ImagePreprocess(height=4, width=4).from_bytes(png(noise)[:300], name="x.png")


def test_wav_of_every_width_gives_the_same_sound() -> None:
    tone = np.sin(np.linspace(0, 40, 400))
    forms = {
        1: np.rint(tone * 127 + 128).astype(np.uint8),
        2: np.rint(tone * 32767).astype("<i2"),
        4: np.rint(tone * (2**31 - 1)).astype("<i4"),
    }
    for width, raw in forms.items():
        out = AudioPreprocess(sample_rate=8000).from_bytes(wav(raw, 8000, width=width), name="x.wav")
        np.testing.assert_allclose(out[0], tone, atol=0.02 if width == 1 else 1e-4)
    three = np.frombuffer(forms[4].tobytes(), np.uint8).reshape(-1, 4)[:, 1:].copy()
    out = AudioPreprocess(sample_rate=8000).from_bytes(wav(three, 8000, width=3), name="x.wav")
    np.testing.assert_allclose(out[0], tone, atol=1e-4)


def test_stereo_becomes_mono_and_the_rate_the_models() -> None:
    t = np.arange(8000) / 8000
    left = np.sin(2 * np.pi * 440 * t)
    stereo = np.stack([left, left], 1)
    data = wav((stereo * 32767).astype("<i2"), 8000, channels=2)
    out = AudioPreprocess(sample_rate=16000).from_bytes(data, name="x.wav")
    assert out.shape == (1, 16000)
    np.testing.assert_allclose(out[0], np.sin(2 * np.pi * 440 * np.arange(16000) / 16000), atol=1e-3)


def test_resampling_down_keeps_what_still_fits() -> None:
    t = np.arange(16000) / 16000
    low, high = np.sin(2 * np.pi * 300 * t), np.sin(2 * np.pi * 6000 * t)
    out = resample((low + high).astype(np.float32), 16000, 8000)
    np.testing.assert_allclose(out, np.sin(2 * np.pi * 300 * np.arange(8000) / 8000), atol=1e-3)


def test_frames_overlap_by_their_context() -> None:
    signal = np.arange(1000, dtype=np.float32)
    out = AudioPreprocess(sample_rate=16000, frame=512, context=64).from_samples(signal, 16000)
    assert out.shape == (2, 576)
    assert (out[0, :64] == 0).all()
    np.testing.assert_array_equal(out[0, 64:], signal[:512])
    np.testing.assert_array_equal(out[1, :64], signal[448:512])
    assert (out[1, 64 + 488 :] == 0).all()


def test_fixed_length_pads_and_cuts() -> None:
    audio = AudioPreprocess(sample_rate=10, samples=8, channel_axis=True)
    assert audio.from_samples(np.ones(3), 10).tolist() == [[[1, 1, 1, 0, 0, 0, 0, 0]]]
    assert audio.from_samples(np.ones(20), 10).shape == (1, 1, 8)


@pytest.mark.parametrize("data", [b"", b"RIFF", wav(np.zeros(0, "<i2"), 8000)])
def test_a_broken_wav_is_one_sentence(data: bytes) -> None:
    with pytest.raises(InputError, match=r"'x\.wav'"):
        AudioPreprocess(sample_rate=8000).from_bytes(data, name="x.wav")


def test_files_of_the_wrong_kind_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"'x\.wav' is not what this model takes"):
        tensor_from_file(tmp_path / "x.wav", ImagePreprocess(height=4, width=4))
    with pytest.raises(InputError, match="cannot be read"):
        tensor_from_file(tmp_path / "none.png", ImagePreprocess(height=4, width=4))


@pytest.mark.parametrize("bad", [{"height": 0}, {"mean": (1.0, 2.0)}, {"std": (0.0,)}])
def test_declarations_that_make_no_sense_are_refused(bad: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="must|needs"):
        ImagePreprocess(**{"height": 4, "width": 4, **bad})  # type: ignore[arg-type]
