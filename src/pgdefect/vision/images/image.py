"""One image file, from bytes on disk to an array.

Whatever the file holds, the result is 8-bit RGB (`pixels` says how), turned as its EXIF
orientation says, so rows and columns are as a viewer shows them. Of several frames or pages it is
the first.

The content decides, not the suffix: PNG, JPEG, BMP, TIFF, WebP, GIF and netpbm (PGM and the
like) are read. Pillow's
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
from dataclasses import dataclass, field, replace
from io import BufferedReader, BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pgdefect.core.errors import ImageError
from pgdefect.vision.images.gray_scale import GrayScale, Samples
from pgdefect.vision.images.pixels import Rgb, both_bytes, to_rgb

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageFile import ImageFile as PillowFile

__all__ = [
    "IMAGE_SUFFIXES",
    "MAX_FILE_BYTES",
    "MAX_PIXELS",
    "ImageFile",
    "load_image",
    "open_image",
    "probe_image",
    "read_image",
    "sha256_of",
]

IMAGE_SUFFIXES = frozenset(
    f".{suffix}"
    for names in ("png apng jpg jpeg jpe jfif jif bmp dib tif tiff", "webp gif pgm ppm pbm pnm")
    for suffix in names.split()
)
"""Suffixes, in lower case, that make a file an image when a folder is scanned."""

MAX_PIXELS = 178_000_000
"""Larger images are refused before decoding: a small file can claim any size."""

MAX_FILE_BYTES = 2 * 1024**3
"""Larger files are refused before reading; 178 million 16-bit RGB pixels take half of it."""

_ORIENTATION_TAG = 0x0112
_large_image = threading.Lock()


@dataclass(frozen=True)
class ImageFile:
    """What `probe_image` found: the file's SHA-256 in hex, its size in bytes, and the
    image's width and height in pixels once the EXIF orientation is applied. decode_ms: how long
    it took to read, decode and prepare the image, where that was done. samples: what its numbers
    are.
    """

    path: Path
    sha256: str
    num_bytes: int
    width: int
    height: int
    decode_ms: float = field(default=0.0, compare=False)
    samples: Samples = field(default=Samples("uint8", 255.0), compare=False)


def load_image(source: Path | str | bytes, scale: GrayScale | None = None) -> Rgb:
    """Decode a file, or the bytes of one.

    Args:
        source: a path, or the content.
        scale: the gray scale of its category.

    Returns:
        uint8 `(height, width, 3)`, RGB, contiguous and writable.

    Raises:
        ImageError: it cannot be read or decoded, or does not fit the scale.
    """
    if isinstance(source, bytes):
        return _decode(source, "image data", scale)[0]
    return _decode(_read_file(source), repr(str(source)), scale)[0]


def read_image(path: Path | str, scale: GrayScale | None = None) -> tuple[ImageFile, Rgb]:
    """Read a file once; return its fingerprint and its pixels. Raises ImageError."""
    data = _read_file(path)
    pixels, samples = _decode(data, repr(str(path)), scale)
    height, width, _ = pixels.shape
    digest = hashlib.sha256(data).hexdigest()
    return ImageFile(Path(path), digest, len(data), width, height, samples=samples), pixels


def probe_image(path: Path | str, scale: GrayScale | None = None) -> ImageFile:
    """Read a file once, hash it and decode all of it, so that a truncated file is found
    here and not in training. With an empty scale any is read, whatever its values are.
    Raises ImageError.
    """
    return read_image(path, scale)[0]


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


def _read_file(path: Path | str) -> bytes:
    with _opened(path) as file:
        data = file.read()
    if not data:
        raise ImageError(f"{str(path)!r} is empty (0 bytes). Copy or export it again")
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
                    "as one image. Export it smaller or compressed"
                )
            yield file
    except FileNotFoundError as error:
        raise ImageError(f"{name} does not exist. Check the path") from error
    except PermissionError as error:
        raise ImageError(f"{name} may not be read by this user. Grant read access") from error
    except (OSError, ValueError, MemoryError) as error:
        raise ImageError(f"{name} cannot be read: {_reason(error)}. Check the file") from error


def _require_regular(mode: int, name: str) -> None:
    if stat.S_ISDIR(mode):
        raise ImageError(f"{name} is a folder, not an image file. Name a file in it")
    if not stat.S_ISREG(mode):
        raise ImageError(f"{name} is a pipe, socket or device. Name a regular image file")


def decoded(source: Path | str) -> tuple[PillowFile, str]:
    """A file as Pillow has it, loaded, and its name for messages. Raises ImageError."""
    name = repr(str(source))
    data = _read_file(source)
    with _explained(name):
        image = _open_checked(data, name)
        _load(image)
        return image, name


def _decode(data: bytes, name: str, scale: GrayScale | None) -> tuple[Rgb, Samples]:
    with _explained(name):
        image = _open_checked(data, name)
        low_bytes = both_bytes(image)
        _load(image)
        wide = None if low_bytes is None else _wide(image, data, name, low_bytes)
        pixels, samples = to_rgb(image, name, scale, wide)
        samples = replace(samples, pages=_pages(image), one_level=_has_one_level(pixels))
        return oriented(pixels, orientation_of(image)), samples


def _wide(
    image: PillowFile, data: bytes, name: str, low_bytes: str
) -> npt.NDArray[np.uint16] | None:
    """16-bit channels: decoded again for the bytes that Pillow leaves out."""
    other = _open(data, name)
    other.tile = [
        tile._replace(args=(low_bytes, *tile[3][1:]) if isinstance(tile[3], tuple) else low_bytes)
        for tile in other.tile
    ]
    _load(other)
    high, low = np.asarray(image), np.asarray(other)
    return high.astype(np.uint16) * 256 + low if high.shape == low.shape else None


def _pages(image: PillowFile) -> int:
    """Frames or pages; 1 where the file is damaged behind the first."""
    try:
        return int(getattr(image, "n_frames", 1))
    except Exception:
        return 1


def _has_one_level(pixels: Rgb) -> bool:
    first = pixels[0, 0]
    return bool((pixels[0] == first).all() and (pixels == first).all())


def _open_checked(data: bytes, name: str) -> PillowFile:
    image = _open(data, name)
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise ImageError(
            f"{name} claims {width} x {height} pixels, more than the {MAX_PIXELS} allowed. "
            "Cut it into tiles or scale it down"
        )
    if width < 1 or height < 1:
        raise ImageError(f"{name} has no pixels ({width} x {height}). Export it again")
    return image


@contextmanager
def _explained(name: str) -> Iterator[None]:
    try:
        yield
    except ImageError:
        raise
    except MemoryError as error:
        raise ImageError(
            f"{name} takes more memory to decode than there is. Cut it into tiles or scale it down"
        ) from error
    except Exception as error:  # Pillow documents no closed set for damaged files
        raise ImageError(
            f"{name} cannot be decoded as an image: {_reason(error)}. "
            "It may be damaged or cut off: copy or export it again"
        ) from error


def _open(data: bytes, name: str) -> PillowFile:
    """Parse the header only."""
    from PIL import (
        BmpImagePlugin,
        GifImagePlugin,
        JpegImagePlugin,
        PngImagePlugin,
        PpmImagePlugin,
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
    if data.startswith((b"GIF87a", b"GIF89a")):
        return GifImagePlugin.GifImageFile(stream)
    if data[:1] == b"P" and data[1:2] in b"123456f" and data[2:3].isspace():
        return PpmImagePlugin.PpmImageFile(stream)
    # Not what it holds: a link may lead to a file that is not for whoever reads this.
    raise ImageError(
        f"{name} is not a PNG, JPEG, BMP, TIFF, WebP, GIF or netpbm file. Convert it to one of "
        "these"
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


def orientation_of(image: Image | Path | str) -> int:
    """The EXIF orientation, 1 to 8, of a decoded image or a file. A damaged EXIF block counts as
    none, as it does in viewers: the pixels do not depend on it.
    """
    try:
        if isinstance(image, Path | str):
            image = _open(_read_file(image), repr(str(image)))
        value = image.getexif().get(_ORIENTATION_TAG, 1)
    except Exception:
        return 1
    return value if isinstance(value, int) else 1


def oriented(pixels: npt.NDArray[Any], orientation: int) -> npt.NDArray[Any]:
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
