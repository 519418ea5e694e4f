"""Patch embeddings of a training's images: resumed where an interrupted training stopped."""

from __future__ import annotations

import base64
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from pgdefect.core.errors import ImageError
from pgdefect.core.progress import Progress
from pgdefect.core.threads import num_cpus
from pgdefect.core.types import Float32, StoredImage
from pgdefect.db.connection.engine import Database
from pgdefect.usecases.common.stored_files import only_unchanged
from pgdefect.usecases.train.options import TrainOptions
from pgdefect.vision.images.preprocess import Batch, batches
from pgdefect.vision.networks.extractor import Extractor, image_embeddings
from pgdefect.vision.networks.torch_tools import library_versions
from pgdefect.vision.patchcore import patchcore
from pgdefect.vision.patchcore.patch_spool import PatchSpool, SpoolKey, content_hash

__all__ = ["Extracted", "extract_patches", "spool_key"]


@dataclass
class Extracted:
    """Image embeddings by image id, of the images that could be read; path and reason of the
    others; resumed: how many an interrupted training had extracted.
    """

    means: dict[int, Float32] = field(default_factory=dict)
    failed: list[tuple[str, str]] = field(default_factory=list)
    resumed: int = 0


def spool_key(
    database: Database,
    category: str,
    extractor: Extractor,
    images: Sequence[StoredImage],
    options: TrainOptions,
) -> SpoolKey:
    """What the patches of these images, in this order, depend on.

    That are the network, how it is run (batches of another size, or another number of threads,
    may round otherwise), and the files: as recorded, and as they lie on the disk now.
    """
    content = {
        "network": extractor.artifact.onnx_sha256,
        "preprocessing": extractor.artifact.spec.preprocessing,
        "device": options.device,
        "batch_size": options.batch_size,
        "precision": options.precision,
        "threads": num_cpus(),
        "versions": library_versions(),
        "images": [
            (image.id, image.path, image.sha256, image.height, image.width, _stamp(image.path))
            for image in images
        ],
    }
    return SpoolKey(content_hash([database.safe_url, category]), content_hash(content))


def _stamp(path: str) -> list[int] | None:
    """What changes with a file's content, and with whether it can be read."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return [found.st_size, found.st_mtime_ns, found.st_ctime_ns]


def extract_patches(
    embedder: patchcore.PatchEmbedder,
    extractor: Extractor,
    images: Sequence[StoredImage],
    spool: PatchSpool,
    options: TrainOptions,
    progress: Progress,
) -> Extracted:
    """Spool the patches of all readable images in order.

    A resumed spool continues after its last whole batch, in which no image came after those
    that it names: batches are the same as if there had been no pause, and so are the patches.
    """
    result = Extracted()
    num_patches = sum(math.prod(extractor.grid_of((image.height, image.width))) for image in images)
    spool.allocate(num_patches, extractor.artifact.embedding_dim)
    first = 0
    for entry in spool.resumed:
        values = np.frombuffer(base64.b64decode(entry["means"]), dtype=np.float32)
        embeddings = values.reshape(len(entry["indices"]), -1)
        result.means.update(
            (images[n].id, one) for n, one in zip(entry["indices"], embeddings, strict=True)
        )
        result.failed += [(path, reason) for path, reason in entry["failed"]]
        first = entry["indices"][-1] + 1
    result.resumed = len(result.means)
    unreadable: list[tuple[int, str, str]] = []

    def on_error(index: int, error: ImageError) -> None:
        unreadable.append((first + index, images[first + index].path, str(error)))

    def consume(batch: Batch) -> None:
        if options.device == "cpu":
            patches = extractor(batch.inputs)
        else:
            patches = embedder.embed(batch.inputs, options.device)
        indices = [first + index for index in batch.indices]
        means = image_embeddings(patches)
        # Batches are read ahead: an error may be of an image behind this one.
        before = [error for error in unreadable if error[0] < indices[-1]]
        unreadable[:] = [error for error in unreadable if error[0] > indices[-1]]
        failed = [(path, reason) for _, path, reason in before]
        spool.append(
            patches,
            {
                "indices": indices,
                "means": base64.b64encode(means.tobytes()).decode(),
                "failed": failed,
            },
        )
        result.failed += failed
        result.means.update((images[n].id, one) for n, one in zip(indices, means, strict=True))
        progress("extract", len(result.means), len(images))

    if first < len(images):
        stream = batches(
            [image.path for image in images[first:]],
            extractor.preprocessing,
            options.batch_size,
            num_threads=2,
            on_error=on_error,
            accept=only_unchanged(images[first:]),
            scale=images[first].gray_scale,
        )
        patchcore.run_engine(embedder, stream, consume, device=options.device)
    result.failed += [(path, reason) for _, path, reason in unreadable]
    return result
