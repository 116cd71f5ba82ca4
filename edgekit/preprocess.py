"""From a file to a model's input: declared once in the package, applied the same everywhere.

The declaration is data (it travels in the manifest); applying it needs numpy and Pillow only.
"""

from __future__ import annotations

import io
import wave
from fractions import Fraction
from pathlib import Path
from typing import Literal, TypeAlias

import msgspec
import numpy as np

from edgekit.errors import InputError
from edgekit.tensors import Array

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff")
AUDIO_SUFFIXES = (".wav",)


class ImagePreprocess(
    msgspec.Struct, frozen=True, kw_only=True, tag="image", tag_field="kind", forbid_unknown_fields=True
):
    """An image file to `(pixel * scale - mean) / std`, one row of a batch.

    Attributes:
        height, width: size that the model takes, in pixels.
        color: channel order: "RGB", "BGR" or "L" (one grey channel).
        resize: "stretch" ignores the aspect ratio; "letterbox" keeps it and pads; "crop" keeps it, covers the
            target and cuts the centre.
        interpolation: how pixels are resampled.
        layout: "NCHW" or "NHWC".
        scale: factor on pixels (0 to 255) before mean and std.
        mean, std: one value, or one a channel in the order of `color`.
        pad: pixel value (0 to 255) around a letterboxed image.
        dtype: element type of the result.
    """

    height: int
    width: int
    color: Literal["RGB", "BGR", "L"] = "RGB"
    resize: Literal["stretch", "letterbox", "crop"] = "stretch"
    interpolation: Literal["nearest", "bilinear", "bicubic", "box"] = "bilinear"
    layout: Literal["NCHW", "NHWC"] = "NCHW"
    scale: float = 1 / 255
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    pad: float = 0.0
    dtype: Literal["float32", "float16", "uint8"] = "float32"

    def __post_init__(self) -> None:
        channels = 1 if self.color == "L" else 3
        if self.height < 1 or self.width < 1:
            raise ValueError(f"image size must be positive, got {self.height}x{self.width}")
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) not in (1, channels):
                raise ValueError(f"{name} needs 1 or {channels} values, got {len(values)}")
        if any(v == 0 for v in self.std):
            raise ValueError("std must not be zero")

    def from_bytes(self, data: bytes, *, name: str) -> Array:
        """One image file's bytes as a tensor of shape (1, C, H, W) or (1, H, W, C).

        Raises:
            InputError: the bytes are not an image that Pillow can decode; `name` is used in the message.
        """
        from PIL import Image, UnidentifiedImageError

        try:
            with Image.open(io.BytesIO(data)) as image:
                image.load()
                return self.from_image(image)
        except UnidentifiedImageError:  # whose text holds an address
            raise InputError(
                f"'{name}' cannot be decoded as an image (of no known format). Give a PNG or JPEG file."
            ) from None
        except (OSError, Image.DecompressionBombError, SyntaxError) as error:
            raise InputError(f"'{name}' cannot be decoded as an image ({error}). Give a PNG or JPEG file.") from error

    def from_image(self, image: object) -> Array:
        """A `PIL.Image.Image` as a tensor of shape (1, C, H, W) or (1, H, W, C)."""
        from PIL import Image, ImageOps

        if not isinstance(image, Image.Image):
            raise InputError(f"Expected a PIL image, got {type(image).__name__}.")
        picture = ImageOps.exif_transpose(image).convert("L" if self.color == "L" else "RGB")
        pixels = np.asarray(self._fit(picture), dtype=np.float32)
        return self.from_pixels(pixels.reshape(self.height, self.width, -1))

    def from_pixels(self, pixels: Array) -> Array:
        """Pixels 0 to 255 of shape (H, W, C), already of the right size and in RGB or L, as one batch row."""
        if self.color == "BGR":
            pixels = pixels[:, :, ::-1]
        if self.dtype == "uint8":
            out = np.clip(np.rint(pixels), 0, 255).astype(np.uint8)
        else:
            scaled = pixels.astype(np.float32) * np.float32(self.scale) - np.asarray(self.mean, np.float32)
            out = (scaled / np.asarray(self.std, np.float32)).astype(self.dtype)
        if self.layout == "NCHW":
            out = out.transpose(2, 0, 1)
        return np.ascontiguousarray(out[None])

    def content_size(self, width: int, height: int) -> tuple[int, int]:
        """What an image of `width` x `height` pixels is resized to, (width, height), before it is padded or cut."""
        if self.resize == "stretch":
            return self.width, self.height
        # Exactly, so that a size of x.5 is rounded to even whatever the sizes: plugins_trt does the same.
        ratios = (Fraction(self.width, width), Fraction(self.height, height))
        ratio = min(ratios) if self.resize == "letterbox" else max(ratios)
        return max(1, round(width * ratio)), max(1, round(height * ratio))

    def _fit(self, picture: object) -> object:
        from PIL import Image

        assert isinstance(picture, Image.Image)
        how = {
            "nearest": Image.Resampling.NEAREST,
            "bilinear": Image.Resampling.BILINEAR,
            "bicubic": Image.Resampling.BICUBIC,
            "box": Image.Resampling.BOX,
        }[self.interpolation]
        target = (self.width, self.height)
        if picture.size == target:
            return picture
        size = self.content_size(picture.width, picture.height)
        scaled = picture.resize(size, how)
        if size == target:
            return scaled
        left, top = (self.width - size[0]) // 2, (self.height - size[1]) // 2
        if self.resize == "crop":
            return scaled.crop((-left, -top, -left + self.width, -top + self.height))
        grey = int(self.pad)
        fill: int | tuple[int, int, int] = grey if picture.mode == "L" else (grey, grey, grey)
        canvas = Image.new(picture.mode, target, fill)
        canvas.paste(scaled, (left, top))
        return canvas


class AudioPreprocess(
    msgspec.Struct, frozen=True, kw_only=True, tag="audio", tag_field="kind", forbid_unknown_fields=True
):
    """A WAV file to samples in [-1, 1] at one rate, mono.

    Attributes:
        sample_rate: Hz that the model takes; other files are resampled.
        samples: pad with zeros or cut to this length; None keeps the length of the file.
        frame: cut into frames of this many new samples, one row each; None gives one row.
        context: samples of the frame before that each frame starts with (zeros for the first).
        channel_axis: add an axis of one channel: (rows, 1, samples) instead of (rows, samples).
    """

    sample_rate: int
    samples: int | None = None
    frame: int | None = None
    context: int = 0
    channel_axis: bool = False

    def __post_init__(self) -> None:
        for name in ("sample_rate", "samples", "frame"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be positive, got {value}")
        if self.context < 0:
            raise ValueError(f"context must not be negative, got {self.context}")

    def from_bytes(self, data: bytes, *, name: str) -> Array:
        """One WAV file's bytes as float32 of shape (rows, samples) or (rows, 1, samples).

        Raises:
            InputError: not a PCM WAV file; `name` is used in the message.
        """
        try:
            with wave.open(io.BytesIO(data)) as file:
                rate, channels, width = file.getframerate(), file.getnchannels(), file.getsampwidth()
                raw = file.readframes(file.getnframes())
        except (wave.Error, EOFError) as error:
            raise InputError(
                f"'{name}' is not a PCM WAV file ({error or 'truncated'}). Convert it to 16-bit WAV first."
            ) from error
        if width not in (1, 2, 3, 4):
            raise InputError(f"'{name}' has {8 * width}-bit samples; expected 8, 16, 24 or 32.")
        raw = raw[: len(raw) // (width * channels) * (width * channels)]
        if not raw:
            raise InputError(f"'{name}' holds no samples. Give a recording.")
        return self.from_samples(_pcm(raw, width).reshape(-1, channels).mean(axis=1), rate)

    def from_samples(self, samples: Array, rate: int) -> Array:
        """Mono samples in [-1, 1] at `rate` Hz as the model's input."""
        signal = resample(samples.astype(np.float32), rate, self.sample_rate)
        if self.samples is not None:
            signal = np.pad(signal[: self.samples], (0, max(0, self.samples - len(signal))))
        if self.frame is None:
            rows = signal[None]
        else:
            count = -(-len(signal) // self.frame)
            padded = np.pad(signal, (self.context, count * self.frame - len(signal)))
            starts = np.arange(count) * self.frame
            rows = padded[starts[:, None] + np.arange(self.context + self.frame)[None]]
        rows = np.ascontiguousarray(rows, dtype=np.float32)
        return rows[:, None] if self.channel_axis else rows


Preprocess: TypeAlias = ImagePreprocess | AudioPreprocess


def _pcm(raw: bytes, width: int) -> Array:
    if width == 1:  # the only unsigned form of WAV
        return (np.frombuffer(raw, np.uint8).astype(np.float32) - 128) / 128
    if width == 3:
        octets = np.frombuffer(raw, np.uint8).reshape(-1, 3)
        whole = np.zeros((len(octets), 4), np.uint8)
        whole[:, 1:] = octets
        return whole.view("<i4")[:, 0].astype(np.float32) / 2**31
    values = np.frombuffer(raw, "<i2" if width == 2 else "<i4")
    return values.astype(np.float32) / float(2 ** (8 * width - 1))


def resample(signal: Array, rate: int, target: int) -> Array:
    """`signal` at `rate` Hz resampled to `target` Hz, band-limited, by its spectrum (as scipy.signal.resample)."""
    if rate == target or not len(signal):
        return signal
    length = max(1, round(len(signal) * target / rate))
    spectrum = np.fft.rfft(signal)
    resized = np.zeros(length // 2 + 1, spectrum.dtype)
    keep = min(len(spectrum), len(resized))
    resized[:keep] = spectrum[:keep]
    return (np.fft.irfft(resized, length) * (length / len(signal))).astype(np.float32)


def tensor_from_file(path: Path, preprocess: Preprocess) -> Array:
    """One image or WAV file as the rows that `preprocess` makes of it.

    Raises:
        InputError: the file does not exist, or is not what `preprocess` takes.
    """
    wanted = IMAGE_SUFFIXES if isinstance(preprocess, ImagePreprocess) else AUDIO_SUFFIXES
    if path.suffix.lower() not in wanted:
        raise InputError(f"'{path.name}' is not what this model takes; expected one of {', '.join(wanted)}.")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"'{path}' cannot be read ({error.strerror}). Check the path.") from error
    return preprocess.from_bytes(data, name=path.name)
