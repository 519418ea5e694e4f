"""What EfficientAD needs beside a category's images: teacher weights, and pictures of all kinds.

Both are anomalib's downloads, or what the user has.
"""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any, Literal

from pgdefect.core.errors import DatasetError, WeightsError
from pgdefect.core.file_claims import scratch_folder
from pgdefect.core.wording import option
from pgdefect.vision.networks.optional_imports import require
from pgdefect.vision.networks.torch_tools import quiet

__all__ = ["ModelSize", "downloaded_teacher", "find_imagenette", "teacher_file"]

ModelSize = Literal["small", "medium"]
CONNECT_SECONDS = 20.0


def find_imagenette(folder: Path | None) -> Path:
    """The folder of ImageNet-style images that keep the student from generalizing too well.

    The one given, or anomalib's download of Imagenette (1.5 GB, once), in anomalib's cache.

    Raises:
        DatasetError: there are no images in folders of it, or it cannot be downloaded.
    """
    require("anomalib")
    with quiet():
        from anomalib.models.image.efficient_ad.lightning_model import IMAGENETTE_DOWNLOAD_INFO
        from anomalib.utils.path import get_datasets_dir
        from torchvision.datasets import ImageFolder

    source = folder
    if source is None:
        source = get_datasets_dir() / "imagenette"
        if not source.is_dir():
            try:
                _download(IMAGENETTE_DOWNLOAD_INFO, source)
            except OSError as error:
                raise DatasetError(
                    f"cannot download the images that EfficientAD trains beside: "
                    f"{_reason(error)}. Unpack {IMAGENETTE_DOWNLOAD_INFO.url}, or put other "
                    "photographs of all kinds into folders of one folder, and name it with "
                    f"{option('imagenette_dir')}"
                ) from error
    try:
        ImageFolder(source)
    except OSError as error:
        raise DatasetError(
            f"{source} has no images in folders, one for each kind (DIR/dog/0001.jpg): {error}"
        ) from error
    return source


def teacher_file(size: ModelSize) -> str:
    return f"pretrained_teacher_{size}.pth"


def downloaded_teacher(size: ModelSize) -> Path:
    """The teacher's weights in anomalib's cache, downloaded once for both sizes."""
    with quiet():
        from anomalib.models.image.efficient_ad.lightning_model import WEIGHTS_DOWNLOAD_INFO
        from anomalib.utils.path import get_pretrained_weights_dir

    folder = get_pretrained_weights_dir() / Path(WEIGHTS_DOWNLOAD_INFO.name).stem
    if not (folder / teacher_file(size)).is_file():
        try:
            _download(WEIGHTS_DOWNLOAD_INFO, folder, inner=folder.name)
        except OSError as error:
            raise WeightsError(
                f"cannot download the weights of EfficientAD's teacher: {_reason(error)}. Get "
                f"{teacher_file(size)} out of {WEIGHTS_DOWNLOAD_INFO.url} and give it with "
                f"{option('teacher_weights')}"
            ) from error
    return folder / teacher_file(size)


def _download(info: Any, target: Path, *, inner: str = "") -> None:
    """Anomalib's download, checked and unpacked aside: interrupted, it leaves nothing behind.

    Args:
        inner: the folder of the archive that becomes `target`; all of it if empty.

    Raises:
        OSError: nothing answers, the checksum is wrong, or the disk is full.
    """
    from anomalib.data.utils import download_and_extract

    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        raise OSError("the environment says HF_HUB_OFFLINE")
    target.parent.mkdir(parents=True, exist_ok=True)
    before = socket.getdefaulttimeout()
    with scratch_folder(target.parent, ".pgdefect-") as scratch:
        unpacked = scratch / "unpacked"
        socket.setdefaulttimeout(CONNECT_SECONDS)
        try:
            download_and_extract(unpacked, info)
        except ValueError as error:  # the checksum
            raise OSError(str(error)) from error
        finally:
            socket.setdefaulttimeout(before)
        (unpacked / inner).replace(target)


def _reason(error: OSError) -> str:
    return (str(error).splitlines() or [""])[0] or type(error).__name__
