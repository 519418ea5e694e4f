"""A folder with every kind of bad file that cameras, copies and people leave, among good ones."""

from __future__ import annotations

import os
import socket
import struct
import zlib
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms

Pixels = NDArray[np.uint8]
FORMS = {"PNG": "png", "JPEG": "jpg", "TIFF": "tif", "BMP": "bmp", "WEBP": "webp"}
COLOR: Pixels = np.random.default_rng(3).integers(0, 256, (40, 56, 3), dtype=np.uint8)
EXIF_TURNS = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: a.swapaxes(0, 1)[:, ::-1],
    7: lambda a: a.swapaxes(0, 1)[::-1, ::-1],
    8: lambda a: a.swapaxes(0, 1)[::-1],
}
"""What a viewer does to the stored pixels, by EXIF orientation."""


@dataclass
class BadFolder:
    """What was written, by path in the folder.

    good: the pixels that have to be read, and by how much one may differ; refused: a part of
    the reason; skipped: a part of the line that says so.
    """

    root: Path
    good: dict[str, tuple[Pixels, int]] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)

    def put(self, name: str, data: bytes) -> None:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def write_bad_folder(root: Path) -> BadFolder:
    """Write the files; the folder is new, on a file system that has pipes and links."""
    root.mkdir()
    folder = BadFolder(root)
    _good(folder)
    _oddly_named(folder)
    _damaged(folder)
    _out_of_range(folder)
    _no_files(folder)
    return folder


def encode(image: Image.Image, form: str, **options: Any) -> bytes:
    stream = BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


def _good(folder: BadFolder) -> None:
    def add(name: str, data: bytes, pixels: Any, tolerance: int = 0) -> None:
        folder.put(name, data)
        folder.good[name] = np.asarray(pixels, np.uint8), tolerance

    as_gif = encode(Image.fromarray(COLOR[..., 0]), "GIF")
    add("gif_called.png", as_gif, np.repeat(COLOR[..., :1], 3, axis=2))

    image = Image.fromarray(COLOR)
    gray = COLOR[..., 0]
    three = np.repeat(gray[..., None], 3, axis=2)
    add("plain.png", encode(image, "PNG"), COLOR)
    add("one.png", encode(Image.new("RGB", (1, 1), (9, 8, 7)), "PNG"), [[[9, 8, 7]]])
    add("line.bmp", encode(Image.fromarray(COLOR[:1]), "BMP"), COLOR[:1])
    wide = Image.fromarray(gray.astype(np.uint16) * 257)
    add("wide.png", encode(wide, "PNG"), three)
    add("wide.tif", encode(wide, "TIFF"), three)
    add("float.tif", encode(Image.fromarray(gray.astype(np.float32) / 255), "TIFF"), three)
    add("bits.png", encode(Image.fromarray(gray > 127), "PNG"), (three > 127) * 255)
    few = image.quantize(16)
    add("palette.png", encode(few, "PNG"), few.convert("RGB"))
    alpha = COLOR[..., 1]
    dark = np.rint(COLOR.astype(float) * alpha[..., None] / 255)
    add("alpha.png", encode(Image.fromarray(np.dstack([COLOR, alpha])), "PNG"), dark, 1)
    flat = np.full_like(COLOR, (200, 100, 50))
    add("cmyk.jpg", encode(Image.fromarray(flat).convert("CMYK"), "JPEG", quality=98), flat, 4)
    for form in ("PNG", "WEBP", "TIFF"):
        options: dict[str, Any] = {"lossless": True} if form == "WEBP" else {}
        frames = {"save_all": True, "append_images": [image.rotate(180)]}
        add(f"animated.{FORMS[form]}", encode(image, form, **frames, **options), COLOR)
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    add("profile.png", encode(image, "PNG", icc_profile=profile), COLOR)
    add("profile_damaged.png", encode(image, "PNG", icc_profile=b"no profile" * 20), COLOR)
    add("jpeg_called.png", encode(Image.fromarray(flat), "JPEG", quality=98), flat, 4)
    for orientation, turn in EXIF_TURNS.items():
        exif = Image.Exif()
        exif[0x0112] = orientation
        add(f"turned_{orientation}.png", encode(image, "PNG", exif=exif), turn(COLOR))


def _oddly_named(folder: BadFolder) -> None:
    data = encode(Image.fromarray(COLOR), "PNG")
    component = "ä" * 120
    for name in (
        'it\'s a "test" %s {0} [1] *.png',
        "'; DROP TABLE pgdefect.image; --.png",
        "two\nlines.png",
        "\x1b[2Jclear.png",
        "空 间.PNG",
        f"{'n' * 251}.png",
        f"{component}/{component}.png",  # 486 bytes
    ):
        folder.put(name, data)
        folder.good[name] = COLOR, 0
    deep = "/".join(["d" * 250] * 8) + "/x.png"
    folder.put(deep, data)
    folder.skipped[deep] = "longer than 2000 bytes"
    raw = os.fsencode(folder.root) + b"/latin\xe9.png"
    with open(raw, "wb") as file:
        file.write(data)
    folder.skipped["latin\udce9.png"] = "not valid UTF-8"


def _damaged(folder: BadFolder) -> None:
    for form, suffix in FORMS.items():
        data = encode(Image.fromarray(COLOR), form)
        # In the signature, in the header, in the middle, before the end.
        for percent, length in ((0, 5), (1, 24), (50, len(data) // 2), (90, len(data) * 9 // 10)):
            name = f"cut_at_{percent}.{suffix}"
            folder.put(name, data[:length])
            folder.refused[name] = name
    for name, content, reason in (
        ("empty.png", b"", "is empty"),
        ("words.png", b"not an image at all", "not a PNG"),
        ("zeros.tif", bytes(5000), "not a PNG"),
        ("script.jpg", b"#!/bin/sh\nrm -rf /\n", "not a PNG"),
        ("bomb.png", _png_header(20_000, 20_000), "20000 x 20000 pixels"),
        ("bomb.bmp", _bmp_header(20_000, 20_000), "20000 x 20000 pixels"),
        ("bomb.tif", _tiff_header(20_000, 20_000), "20000 x 20000 pixels"),
    ):
        folder.put(name, content)
        folder.refused[name] = reason


def _out_of_range(folder: BadFolder) -> None:
    values = np.linspace(0, 1, 40 * 56, dtype=np.float32).reshape(40, 56)
    for name, wrong, reason in (
        ("nan.tif", np.nan, "without NaN"),
        ("infinite.tif", np.inf, "without NaN"),
        ("negative.tif", -1.0, "only 0 to 1"),
        ("cold.tif", -300.5, "only 0 to 1"),
    ):
        changed = values.copy()
        changed[3, 4] = wrong
        folder.put(name, encode(Image.fromarray(changed), "TIFF"))
        folder.refused[name] = reason
    integers = Image.fromarray(np.full((40, 56), -70_000, np.int32))
    folder.put("below_zero.tif", encode(integers, "TIFF"))
    folder.refused["below_zero.tif"] = "only 0 to 65535"


def _no_files(folder: BadFolder) -> None:
    root = folder.root
    os.mkfifo(root / "pipe.png")
    with socket.socket(socket.AF_UNIX) as made:
        # By a short name: a socket's path has a hundred characters at most.
        here = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
        try:
            made.bind(f"/proc/self/fd/{here}/socket.png")
        finally:
            os.close(here)
    (root / "loop.png").symlink_to("loop.png")
    (root / "dangling.png").symlink_to("nowhere.png")
    for name in ("pipe.png", "socket.png", "loop.png", "dangling.png"):
        folder.skipped[name] = "broken link or no regular file"
    (root / "again").symlink_to(".")
    (root / "folder.png").mkdir()
    (root / "notes.txt").write_text("not looked at")
    if os.geteuid() != 0:  # whom no mode keeps out
        folder.put("locked.png", encode(Image.fromarray(COLOR), "PNG"))
        (root / "locked.png").chmod(0)
        folder.refused["locked.png"] = "may not be read"


def _png_header(width: int, height: int) -> bytes:
    def chunk(name: bytes, body: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(name + body))
        return struct.pack(">I", len(body)) + name + body + checksum

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


def _bmp_header(width: int, height: int) -> bytes:
    data = bytearray(encode(Image.new("RGB", (8, 8)), "BMP"))
    data[18:26] = struct.pack("<ii", width, height)
    return bytes(data)


def _tiff_header(width: int, height: int) -> bytes:
    """A small TIFF whose directory says that it is large."""
    data = bytearray(encode(Image.new("L", (8, 8)), "TIFF"))
    (start,) = struct.unpack_from("<I", data, 4)
    (count,) = struct.unpack_from("<H", data, start)
    for entry in range(start + 2, start + 2 + 12 * count, 12):
        tag = struct.unpack_from("<H", data, entry)[0]
        if tag in (256, 257):
            data[entry : entry + 12] = struct.pack(
                "<HHII", tag, 4, 1, width if tag == 256 else height
            )
    return bytes(data)
