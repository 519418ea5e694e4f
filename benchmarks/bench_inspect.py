"""Judging images: by the index, and with the bank in memory, against anomalib's Engine.predict.

By the index means that SQL finds the bank vectors near every other patch and proves the worst
ones; in between all patches are compared with what was found, by one product in NumPy.

Both score the patches of the same image files against the same bank: anomalib compares the
raw vectors of the very patches that pgdefect picked (`pgdefect export` writes them, read
again from their images), pgdefect compares them transformed, as it stores them, but not whitened
and with layers that count alike. anomalib scores an image by its worst patch; pgdefect is timed
with that and with its default, a mean over the worst few, all of them proven. anomalib's components
that make pictures and metrics are off.
"""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from benchmarks.common import Context, Report, Row, server, timed

CATEGORY = "bench"
AUROC_MAY_DIFFER_BY = 0.002
MEAN = ", mean over the worst"
"""What is added to the name of a search where the score is one, as by default."""
ASKED = {"hnsw": (0.99, 1.0), "fast": (0.95, 2.0)}
"""Of each search, either way: patch recall@1, times as fast as anomalib."""


def measure(context: Context) -> Report:
    from pgdefect.core.config import Settings
    from pgdefect.db.search.queries import images_of
    from pgdefect.evaluation import image_auroc
    from pgdefect.usecases.common.patch_search import SearchKind, count_worst
    from pgdefect.usecases.exchange.export_anomalib import export_anomalib
    from pgdefect.usecases.ingest import ingest_dataset
    from pgdefect.usecases.inspect.inspect import inspect
    from pgdefect.usecases.inspect.inspector import Inspector
    from pgdefect.usecases.train.options import DEFAULT_WORST_SHARE, TrainOptions
    from pgdefect.usecases.train.train import train

    quick = context.quick
    images = context.images.limited(train=20, test=8) if quick else context.images
    num_vectors, num_single = (1_000, 10) if quick else (20_000, 100)
    test = [*images.paths("test", "normal"), *images.paths("test", "anomalous")]
    anomalous = [path in set(images.paths("test", "anomalous")) for path in test]
    single = test[:: max(1, len(test) // num_single)][:num_single]
    settings = Settings(cache_dir=context.folder)
    report = Report("inspect", f"{len(test)} test images of {images.name}")
    with server() as database:
        ingest_dataset(database, images.dataset, CATEGORY)
        # As anomalib does, whose distances no axis is stretched for.
        options = TrainOptions(
            resize="stretch", local_contrast=None, whiten=0.0, layer_weights={}, worst_share=0.0
        )
        learned = images_of(database, CATEGORY, split="train", label="normal")
        context.say(f"training on {len(learned)} images, {num_vectors:,} vectors")
        ratio = num_vectors / (len(learned) * 1024)
        options = replace(options, coreset_ratio=ratio, max_vectors=None)
        trained = train(database, settings, CATEGORY, options)
        checkpoint = context.folder / "bench.ckpt"
        export_anomalib(database, settings, CATEGORY, checkpoint, force=True)
        peer = Peer(checkpoint, context.folder)

        kinds: tuple[SearchKind, ...] = ("hnsw", "fast")
        inspectors = {kind: Inspector(database, settings, CATEGORY, kind) for kind in kinds}
        _score_by(database, DEFAULT_WORST_SHARE)
        inspectors |= {
            f"{kind}{MEAN}": Inspector(database, settings, CATEGORY, kind) for kind in kinds
        }
        _score_by(database, 0.0)
        seconds: dict[str, list[float]] = {name: [] for name in (*inspectors, "peer", "exact")}
        for inspector in inspectors.values():
            _judge(inspector, single[:3])
        peer.predict(single[:3])
        paths = [Path(path) for path in test]
        for _ in range(context.repeat):  # in turns, so that a busy moment meets all
            for kind, inspector in inspectors.items():
                context.say(f"{len(single)} images one at a time, --search {kind}")
                seconds[kind].append(
                    timed(lambda inspector=inspector: [_judge(inspector, [p]) for p in single])[0]
                )
            context.say(f"{len(single)} images, anomalib")
            seconds["peer"].append(peer.predict(single)[0])
            context.say(f"{len(test)} images, --search exact")
            taken, exact = timed(
                # Without what anomalib does not do either: defect embeddings and votes.
                lambda: inspect(
                    database,
                    settings,
                    CATEGORY,
                    paths,
                    search="exact",
                    store=False,
                    defects=False,
                )
            )
            seconds["exact"].append(taken)
        context.say(f"{len(test)} images, all ways, for the AUROC")
        taken, theirs = peer.predict(test)
        judged = {"exact": list(exact.inspections)}
        batched = {}
        for kind, inspector in inspectors.items():
            batched[kind], judged[kind] = timed(lambda inspector=inspector: _judge(inspector, test))
        bank = inspectors["hnsw"].detector.bank

    auroc = {"anomalib": image_auroc(theirs, anomalous)}
    for kind, found in judged.items():
        auroc[kind] = image_auroc(np.array([i.raw_score for i in found]), anomalous)
    true = np.stack([i.scores.distances for i in judged["exact"]])
    sorted_maps = np.sort(true.reshape(len(test), -1), axis=1)
    num_mean = count_worst(DEFAULT_WORST_SHARE, sorted_maps.shape[1])
    recall = {}
    for kind in inspectors:
        target, _ = ASKED[kind.removesuffix(MEAN)]
        num_worst = num_mean if kind.endswith(MEAN) else 1
        scores = sorted_maps[:, -num_worst:].mean(axis=1)
        exact_auroc = image_auroc(scores, anomalous)
        found = np.stack([i.scores.distances for i in judged[kind]])
        recall[kind] = float((found <= true * (1 + 1e-4) + 1e-6).mean())
        report.check(
            f"--search {kind}: patch recall@1 {recall[kind]:.4f} on the test images, of {target}",
            recall[kind] >= target,
        )
        apart = np.abs(np.array([i.raw_score for i in judged[kind]]) / scores - 1).max()
        report.check(
            f"--search {kind}: image scores are the exact ones ({apart:.0e})", apart < 1e-3
        )
        report.check(
            f"--search {kind}: image AUROC {auroc[kind]:.4f}, exact {exact_auroc:.4f}",
            abs(auroc[kind] - exact_auroc) <= AUROC_MAY_DIFFER_BY,
        )
    report.check(
        f"image AUROC {auroc['exact']:.4f}, anomalib's {auroc['anomalib']:.4f}: not lower by more "
        f"than {AUROC_MAY_DIFFER_BY}",
        auroc["exact"] >= auroc["anomalib"] - AUROC_MAY_DIFFER_BY,
    )
    report.check(
        f"image AUROC within {AUROC_MAY_DIFFER_BY} of anomalib's "
        f"({auroc['exact'] - auroc['anomalib']:+.4f})",
        abs(auroc["exact"] - auroc["anomalib"]) <= AUROC_MAY_DIFFER_BY,
    )
    peer_each = median(seconds["peer"]) / len(single)
    against = (
        f"anomalib Engine.predict(model, dataset=PredictDataset) over {len(single)} images, time "
        f"an image without start-up; {bank.num_vectors:,} raw vectors of 152 dimensions"
    )
    network = peer.flops / context.rates.flops
    gflops = f"{context.rates.flops / 1e9:.0f} GFLOP/s"
    for kind in inspectors:
        search = kind.removesuffix(MEAN)
        _, target = ASKED[search]
        ef = bank.ef_search if search == "hnsw" else bank.ef_search_fast
        report.rows.append(
            Row(
                f"one image in SQL, --search {kind}",
                against,
                median(seconds[kind]) / len(single),
                peer_each,
                target,
                f"the network alone, {peer.flops / 1e9:.2f} GFLOP at {gflops}: decoding and an "
                "index that cost nothing",
                network,
                [
                    f"one at a time, decode to verdict, bank of {bank.num_vectors:,} vectors of "
                    f"{bank.embedding_dim} dimensions, ef_search {ef}, recall {recall[kind]:.4f}"
                ],
            )
        )
        report.rows.append(
            Row(
                f"an image of {len(test)} in one call, --search {kind}",
                against,
                batched[kind] / len(test),
                peer_each,
            )
        )
    product = 2 * 1024 * bank.num_vectors * bank.embedding_dim
    report.rows.append(
        Row(
            f"{len(test)} images, --search exact",
            f"the same, times {len(test)}",
            median(seconds["exact"]),
            peer_each * len(test),
            4.0,
            f"network {peer.flops / 1e9:.2f} and products {product / 1e9:.2f} GFLOP an image at "
            f"{gflops}",
            (peer.flops + product) / context.rates.flops * len(test),
            ["the whole call: bank and network loaded, files decoded, nothing stored"],
        )
    )
    report.facts = {
        "image_auroc": auroc,
        "recall": recall,
        "ef_search": bank.ef_search,
        "ef_search_fast": bank.ef_search_fast,
        "bank_vectors": trained.bank_vectors,
        "peer_seconds_an_image_over_all": taken / len(test),
        "seconds": seconds,
    }
    return report


def _score_by(database: Any, worst_share: float) -> None:
    """What detectors that are read from now on make of an image's patches."""
    from sqlalchemy import text

    with database.begin() as connection:
        connection.execute(
            text("UPDATE pgdefect.memory_bank SET worst_share = :share"), {"share": worst_share}
        )


class Peer:
    """anomalib with the same bank, timed from the first batch to the last."""

    def __init__(self, checkpoint: Path, folder: Path) -> None:
        import torch
        from anomalib.engine import Engine
        from anomalib.models import Patchcore
        from lightning.pytorch import Callback
        from torch.utils.flop_counter import FlopCounterMode

        class Clock(Callback):
            seconds = 0.0

            def on_predict_start(self, *args: Any) -> None:
                self.start = time.perf_counter()

            def on_predict_end(self, *args: Any) -> None:
                self.seconds = time.perf_counter() - self.start

        self.clock = Clock()
        self.model = Patchcore.load_from_checkpoint(checkpoint, map_location="cpu").eval()
        self.model.post_processor = None
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            self.model.model.feature_extractor(torch.zeros(1, 3, 256, 256))
        self.flops = counter.get_total_flops()
        self.engine = Engine(
            accelerator="cpu",
            devices=1,
            default_root_dir=folder / "anomalib",
            callbacks=[self.clock],
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )

    def predict(self, paths: list[str]) -> tuple[float, Any]:
        """Seconds without start-up, image scores `(n,)` in the order of the paths."""
        from anomalib.data import PredictDataset

        dataset = PredictDataset(paths[0])
        dataset.image_filenames = [Path(path) for path in paths]
        found = self.engine.predict(model=self.model, dataset=dataset)
        scores = np.array([float(score) for batch in found for score in batch.pred_score])
        return self.clock.seconds, scores


def _judge(inspector: Any, paths: list[str]) -> list[Any]:
    def on_error(index: int, error: Exception) -> None:
        raise error

    return [j.inspection for batch in inspector.judge(paths, on_error) for _, j in batch]
