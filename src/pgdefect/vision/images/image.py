"""One image file, from bytes on disk to an array.

Whatever the file holds, the result is 8-bit RGB:

==================================  ==================================================
1-bit, gray, palette, CMYK, YCbCr   converted to RGB (gray: three equal channels)
transparency (any kind)             composited over black: what an inspection camera did
                                    not see is dark, and a cut-out part has no white rim
16-bit gray, integer gray           0..65535 becomes 0..255 (value / 257, rounded);
                                    anything outside that range is refused
16-bit colour                       the high byte of each channel
32-bit float gray                   values in 0..1 times 255, else values in 0..255 as
                                    they are, else (and NaN, infinities) refused
several frames or pages             the first
ICC profile                         not applied: the numbers are taken as the file has them
EXIF orientation                    applied, so rows and columns are as a viewer shows them
==================================  ==================================================

The content decides, not the suffix: PNG, JPEG, BMP, TIFF and WebP are read. Pillow's
``Image.open`` is not used, because it warns about large images through process-wide
state (unsafe in the decoding threads) and tries some forty formats, Ghostscript's among
them.
"""

from __future__ import annotations

import hashlib
import os
import stat
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BufferedReader, BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt

from pgdefect.core.errors import ImageError

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageFile import ImageFile as PillowFile

__all__ = [
    "IMAGE_SUFFIXES",
    "MAX_FILE_BYTES",
    "MAX_PIXELS",
    "ImageFile",
    "load_image",
    "load_mask",
    "open_image",
    "probe_image",
    "read_image",
    "sha256_of",
]

Rgb: TypeAlias = npt.NDArray[np.uint8]

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp"})
"""Suffixes, in lower case, that make a file an image when a folder is scanned."""

MAX_PIXELS = 178_000_000
"""Larger images are refused before decoding: a small file can claim any size."""

MAX_FILE_BYTES = 2 * 1024**3
"""Larger files are refused before reading; 178 million 16-bit RGB pixels take half of it."""

MASK_THRESHOLD = 128

_ORIENTATION_TAG = 0x0112
_large_image = threading.Lock()


@dataclass(frozen=True)
class ImageFile:
    """What `probe_image` found: the file's SHA-256 in hex, its size in bytes, and the
    image's width and height in pixels once the EXIF orientation is applied. decode_ms: how long
    it took to read, decode and prepare the image, where that was done.
    """

    path: Path
    sha256: str
    num_bytes: int
    width: int
    height: int
    decode_ms: float = field(default=0.0, compare=False)


def load_image(source: Path | str | bytes) -> Rgb:
    """Decode a file, or the bytes of one.

    Returns uint8 `(height, width, 3)`, RGB, contiguous and writable.
    Raises ImageError, with a one-line message, for whatever cannot be read or decoded.
    """
    if isinstance(source, bytes):
        return _decode(source, "image data")
    return _decode(_read_file(source), repr(str(source)))


def read_image(path: Path | str) -> tuple[ImageFile, Rgb]:
    """Read a file once; return its fingerprint and its pixels. Raises ImageError."""
    data = _read_file(path)
    pixels = _decode(data, repr(str(path)))
    height, width, _ = pixels.shape
    digest = hashlib.sha256(data).hexdigest()
    return ImageFile(Path(path), digest, len(data), width, height), pixels


def probe_image(path: Path | str) -> ImageFile:
    """Read a file once, hash it and decode all of it, so that a truncated file is found
    here and not in training. Raises ImageError.
    """
    return read_image(path)[0]


def open_image(path: Path | str) -> PillowFile:
    """The image with its header parsed and nothing decoded, for its metadata. Raises ImageError."""
    name = repr(str(path))
    data = _read_file(path)
    try:
        return _open(data, name)
    except ImageError:
        raise
    except Exception as error:  # Pillow documents no closed set for damaged files
        raise ImageError(f"{name} cannot be read as an image: {_reason(error)}") from error


def sha256_of(path: Path | str) -> str:
    """The SHA-256 of a file, in hex, without decoding it. Raises ImageError."""
    with _opened(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def load_mask(path: Path | str, size: tuple[int, int] | None = None) -> npt.NDArray[np.bool_]:
    """Load a ground-truth mask: True where the pixel is defective.

    A pixel is defective where any channel is 128 or more, so anti-aliased and coloured
    masks work. `size` is the `(height, width)` of the image the mask belongs to.
    Returns bool `(height, width)`. Raises ImageError, also where the sizes differ.
    """
    pixels = load_image(path)
    height, width, _ = pixels.shape
    if size is not None and (height, width) != tuple(size):
        raise ImageError(
            f"The mask {str(path)!r} has {height} rows and {width} columns, its image "
            f"{size[0]} and {size[1]}. Export the mask at the size of its image."
        )
    mask: npt.NDArray[np.bool_] = pixels.max(axis=2) >= MASK_THRESHOLD
    return mask


def _read_file(path: Path | str) -> bytes:
    with _opened(path) as file:
        data = file.read()
    if not data:
        raise ImageError(f"{str(path)!r} is empty (0 bytes). Copy or export it again.")
    return data


@contextmanager
def _opened(path: Path | str) -> Iterator[BufferedReader]:
    """A regular file of a size that is read, its errors explained."""
    name = repr(str(path))
    try:
        # Before opening: to open a pipe waits for a writer, and to open a device acts on it.
        _require_regular(os.stat(path).st_mode, name)
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        with os.fdopen(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            _require_regular(status.st_mode, name)
            if status.st_size > MAX_FILE_BYTES:
                raise ImageError(
                    f"{name} has {status.st_size} bytes, more than the {MAX_FILE_BYTES} read "
                    "as one image. Export it smaller or compressed."
                )
            yield file
    except FileNotFoundError as error:
        raise ImageError(f"{name} does not exist. Check the path.") from error
    except PermissionError as error:
        raise ImageError(f"{name} may not be read by this user. Grant read access.") from error
    except (OSError, ValueError, MemoryError) as error:
        raise ImageError(f"{name} cannot be read: {_reason(error)}. Check the file.") from error


def _require_regular(mode: int, name: str) -> None:
    if stat.S_ISDIR(mode):
        raise ImageError(f"{name} is a folder, not an image file. Name a file in it.")
    if not stat.S_ISREG(mode):
        raise ImageError(f"{name} is a pipe, socket or device. Name a regular image file.")


def _decode(data: bytes, name: str) -> Rgb:
    try:
        image = _open(data, name)
        width, height = image.size
        if width * height > MAX_PIXELS:
            raise ImageError(
                f"{name} claims {width} x {height} pixels, more than the {MAX_PIXELS} allowed. "
                "Cut it into tiles or scale it down."
            )
        if width < 1 or height < 1:
            raise ImageError(f"{name} has no pixels ({width} x {height}). Export it again.")
        _load(image)
        return _oriented(_to_rgb(image, name), _orientation(image))
    except ImageError:
        raise
    except MemoryError as error:
        raise ImageError(
            f"{name} takes more memory to decode than there is. Cut it into tiles or scale it down."
        ) from error
    except Exception as error:  # Pillow documents no closed set for damaged files
        raise ImageError(
            f"{name} cannot be decoded as an image: {_reason(error)}. "
            "It may be damaged or cut off: copy or export it again."
        ) from error


def _open(data: bytes, name: str) -> PillowFile:
    """Parse the header only."""
    from PIL import (
        BmpImagePlugin,
        JpegImagePlugin,
        PngImagePlugin,
        TiffImagePlugin,
        WebPImagePlugin,
    )

    stream = BytesIO(data)
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return PngImagePlugin.PngImageFile(stream)
    if data.startswith(b"\xff\xd8\xff"):
        return JpegImagePlugin.JpegImageFile(stream)
    if data.startswith(b"BM"):
        return BmpImagePlugin.BmpImageFile(stream)
    if data.startswith((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")):
        return TiffImagePlugin.TiffImageFile(stream)
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return WebPImagePlugin.WebPImageFile(stream)
    raise ImageError(
        f"{name} is not a PNG, JPEG, BMP, TIFF or WebP file (it starts with the bytes "
        f"{data[:8].hex(' ')}). Convert it to one of these."
    )


def _load(image: PillowFile) -> None:
    from PIL import Image

    if image.width * image.height <= (Image.MAX_IMAGE_PIXELS or MAX_PIXELS):
        image.load()
        return
    # Some of Pillow's decoders warn about large images. The size is already checked; filters
    # are process-wide, so such images are decoded one at a time.
    with _large_image, warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        image.load()


def _to_rgb(image: Image, name: str) -> Rgb:
    mode = image.mode
    if mode.startswith("I"):
        return _gray(_from_integers(np.array(image), image.info.get("transparency"), name))
    if mode == "F":
        return _gray(_from_floats(np.array(image), name))
    if image.has_transparency_data:
        rgba = np.array(image.convert("RGBA"))
        product = rgba[..., :3].astype(np.uint16) * rgba[..., 3:]
        return _as_bytes((product + 127) // 255)
    if mode in ("1", "L"):
        return _gray(np.asarray(image.convert("L")))
    return np.array(image.convert("RGB"))


def _gray(values: Rgb) -> Rgb:
    return np.repeat(values[:, :, np.newaxis], 3, axis=2)


def _from_integers(values: npt.NDArray[np.integer], transparent: object, name: str) -> Rgb:
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > 65535:
        raise ImageError(
            f"{name} holds integer gray values from {low} to {high}; only 0 to 65535 can be "
            "read. Export it as 8-bit or 16-bit unsigned gray."
        )
    scaled = _as_bytes((values.astype(np.uint32) + 128) // 257)
    if isinstance(transparent, int):
        scaled[values == transparent] = 0
    return scaled


def _from_floats(values: npt.NDArray[np.floating], name: str) -> Rgb:
    low, high = float(values.min()), float(values.max())
    if not 0 <= low <= high <= 255:  # also false for NaN
        raise ImageError(
            f"{name} holds float values from {low:g} to {high:g}; only 0 to 1 or 0 to 255, "
            "without NaN, can be read. Scale it to one of these."
        )
    return _as_bytes(np.rint(values * np.float32(255 if high <= 1 else 1)))


def _as_bytes(values: npt.NDArray[Any]) -> Rgb:
    return values.astype(np.uint8)


def _orientation(image: Image) -> int:
    """The EXIF orientation, 1 to 8. A damaged EXIF block counts as none, as it does in
    viewers: the pixels do not depend on it.
    """
    try:
        value = image.getexif().get(_ORIENTATION_TAG, 1)
    except Exception:
        return 1
    return value if isinstance(value, int) else 1


def _oriented(pixels: Rgb, orientation: int) -> Rgb:
    """Undo the camera's rotation; `orientation` as in the EXIF standard, others ignored."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)


def _reason(error: BaseException) -> str:
    """One line, without the path that the message already names."""
    text = getattr(error, "strerror", None) or str(error)
    return " ".join(text.split()) or type(error).__name__
