"""From what a file holds to 8-bit RGB.

==================================  ==================================================
1-bit, gray, palette, CMYK, YCbCr   converted to RGB (gray: three equal channels)
CIE Lab                             converted to sRGB
transparency (any kind)             composited over black: what an inspection camera did
                                    not see is dark, and a cut-out part has no white rim
alpha that is zero throughout       left out: colors as stored, since nothing was cut out
16-bit gray and color, integers,   black is 0; white is the category's (`gray_scale`).
floats                              Without one: 65535 for integers, and for floats 1 where
                                    the file has no more, else 255; anything else refused
negative values, NaN, infinities    refused
ICC profile, gamma                  not applied: the numbers are taken as the file has them
==================================  ==================================================
"""

from __future__ import annotations

import re
import sys
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt

from pgdefect.core.errors import ImageError
from pgdefect.vision.images.gray_scale import GrayScale, Samples, white_of

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["Rgb", "both_bytes", "to_rgb"]

Rgb: TypeAlias = npt.NDArray[np.uint8]

_SIXTEEN = re.compile(r"(RGB|RGBX|RGBA);16[LBN]")


def to_rgb(
    image: Image, name: str, scale: GrayScale | None, wide: npt.NDArray[np.uint16] | None = None
) -> tuple[Rgb, Samples]:
    """A decoded image's pixels `(height, width, 3)` and what they were.

    Args:
        image: loaded.
        name: of the file, for messages.
        scale: of the category; None where there is none.
        wide: its 16-bit channels `(height, width, 3 or 4)`, of which Pillow has the high bytes.

    Raises:
        ImageError: values out of range, or not of this scale.
    """
    mode = image.mode
    if wide is not None:
        return _from_colors(wide, name, scale)
    if mode.startswith("I"):
        values = np.array(image)
        kind = "int32" if mode == "I" else "uint16"
        if mode == "I" and image.format == "PPM":
            kind = "netpbm16"
        return _gray_integers(values, kind, image.info.get("transparency"), name, scale)
    if mode == "F":
        return _gray_floats(np.array(image), name, scale)
    eight = Samples("uint8", 255.0)
    if image.has_transparency_data:
        rgba = np.array(image.convert("RGBA"))
        if not rgba[..., 3].any():
            return np.ascontiguousarray(rgba[..., :3]), Samples("uint8", 255.0, alpha_ignored=True)
        product = rgba[..., :3].astype(np.uint16) * rgba[..., 3:]
        return _as_bytes((product + 127) // 255), eight
    if mode in ("1", "L"):
        return _gray(np.asarray(image.convert("L"))), eight
    if mode == "LAB":
        return _from_lab(image), eight
    return np.array(image.convert("RGB")), eight


def both_bytes(image: Image) -> str | None:
    """The raw mode that gives the low bytes of an image of 16-bit colors, before it is loaded.

    None where Pillow does not halve its channels.
    """
    tiles = getattr(image, "tile", None) or []
    raw = {tile[3][0] if isinstance(tile[3], tuple) else tile[3] for tile in tiles}
    found = next(iter(raw)) if len(raw) == 1 else None
    if not isinstance(found, str) or not _SIXTEEN.fullmatch(found):
        return None
    stored_big = found.endswith("B") or (found.endswith("N") and sys.byteorder == "big")
    return found[:-1] + ("L" if stored_big else "B")


def _gray(values: Rgb) -> Rgb:
    return np.repeat(values[:, :, np.newaxis], 3, axis=2)


def _gray_integers(
    values: npt.NDArray[np.integer],
    kind: str,
    transparent: object,
    name: str,
    scale: GrayScale | None,
) -> tuple[Rgb, Samples]:
    low, high = int(values.min()), int(values.max())
    samples = Samples(kind, float(high))
    white = white_of(scale, samples, name)
    if low < 0 or (white is None and high > 65535 and scale is None):
        raise ImageError(
            f"{name} holds integer gray values from {low} to {high}; only 0 to 65535 can be "
            "read. Export it as 8-bit or 16-bit unsigned gray"
        )
    scaled = _scaled(values, white or float(max(high, 65535)))
    if isinstance(transparent, int):
        scaled[values == transparent] = 0
    return _gray(scaled), samples


def _gray_floats(
    values: npt.NDArray[np.floating], name: str, scale: GrayScale | None
) -> tuple[Rgb, Samples]:
    low, high = float(values.min()), float(values.max())
    sound = 0 <= low <= high < np.inf  # also false for NaN
    samples = Samples("float32", high)
    white = white_of(scale, samples, name) if sound else None
    if not sound or (white is None and high > 255 and scale is None):
        raise ImageError(
            f"{name} holds float values from {low:g} to {high:g}; only 0 to 1 or 0 to 255, "
            "without NaN, can be read. Scale it to one of these"
        )
    white = white or (1.0 if high <= 1 else max(high, 255.0))
    return _gray(_as_bytes(np.rint(values * np.float32(255 / white)))), samples


def _from_colors(
    values: npt.NDArray[np.uint16], name: str, scale: GrayScale | None
) -> tuple[Rgb, Samples]:
    colors = values[..., :3]
    cut_out = values.shape[2] == 4
    ignored = cut_out and not values[..., 3].any()
    samples = Samples("uint16", float(colors.max()), alpha_ignored=ignored)
    scaled = _scaled(colors, white_of(scale, samples, name) or 65535.0)
    if cut_out and not ignored:
        alpha = values[..., 3:]
        full = max(int(alpha.max()), 1)
        scaled = _as_bytes((scaled.astype(np.uint32) * alpha + full // 2) // full)
    return np.ascontiguousarray(scaled), samples


def _scaled(values: npt.NDArray[np.integer], white: float) -> Rgb:
    """0 to white as 0 to 255, rounded half up."""
    top = int(white)
    wide = np.uint32 if top <= 65535 else np.uint64
    return _as_bytes((values.astype(wide) * 510 + top) // (2 * top))


def _from_lab(image: Image) -> Rgb:
    from PIL import ImageCms

    lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
    converted = ImageCms.profileToProfile(image, lab, srgb, outputMode="RGB")
    return np.array(converted)


def _as_bytes(values: npt.NDArray[Any]) -> Rgb:
    return values.astype(np.uint8)
