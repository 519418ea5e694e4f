"""Patch embeddings of prepared images, by the exported graph and by anomalib's network."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.common import (
    SIZE,
    Context,
    Report,
    Row,
    extractor_for,
    median_alternating,
    prepared,
)

BATCH = 8
TARGETS = {"efficientnet_lite0": 5.0, "wide_resnet50_2": 1.4}


def measure(context: Context) -> Report:
    import torch

    report = Report("features", f"{BATCH} images of {context.images.name}, {SIZE[0]}x{SIZE[1]}")
    for name in list(TARGETS)[: 1 if context.quick else None]:
        context.say(f"exporting {name}")
        embedder, extractor = extractor_for(name, context.folder)
        inputs = prepared(context.images.normal_training[:BATCH], extractor.preprocessing)
        tensor = torch.from_numpy(inputs)
        model = embedder.lightning_model.model.eval()

        def tapped(model: Any = model, tensor: Any = tensor) -> Any:
            with torch.no_grad():
                return model.feature_extractor(tensor)

        def embedded(embedder: Any = embedder, tensor: Any = tensor) -> Any:
            with torch.no_grad():
                return embedder.network(tensor)

        def ours(extractor: Any = extractor, inputs: Any = inputs) -> Any:
            return extractor(inputs)

        expected = embedded().numpy()
        error = float(np.linalg.norm(ours() - expected) / np.linalg.norm(expected))
        report.check(f"{name}: features equal torch's to 1e-5 in norm ({error:.1e})", error <= 1e-5)
        flops = _flops(tapped)
        floor = flops / context.rates.flops
        repeat = 3 if context.quick else 15
        seconds, peer = median_alternating(ours, embedded, repeat)
        report.rows.append(
            Row(
                f"{name}, the same patch embeddings",
                "anomalib's PatchcoreModel in torch: TimmFeatureExtractor, pooling, concatenation",
                seconds,
                peer,
                TARGETS[name],
                f"{flops / 1e9:.1f} GFLOP at {context.rates.flops / 1e9:.0f} GFLOP/s, what a large "
                "matrix product reaches (Winograd's convolutions need fewer)",
                floor,
            )
        )
        seconds, peer = median_alternating(ours, tapped, repeat)
        report.rows.append(
            Row(
                f"{name}, torch's tapped layers only",
                "anomalib's TimmFeatureExtractor alone, which makes less than ours",
                seconds,
                peer,
            )
        )
        # Decoding and scoring run beside the network: what it takes of the processors counts
        # as much as how long it takes with all of them to itself.
        cpu = {"OpenVINO": cpu_seconds(ours, repeat)}
        for spinning in (True, False):
            runtime = f"ONNX Runtime, threads that {'spin' if spinning else 'sleep'} while waiting"
            other = _onnxruntime(extractor, inputs, spinning)
            seconds, peer = median_alternating(ours, other, repeat)
            cpu[runtime] = cpu_seconds(other, repeat)
            report.rows.append(Row(f"{name}, the same graph", runtime, seconds, peer))
            report.rows.append(
                Row(f"{name}, its processor time", runtime, cpu["OpenVINO"], cpu[runtime])
            )
    return report


def cpu_seconds(call: Callable[[], Any], repeat: int) -> float:
    """Processor time of all threads for one call, over as many as asked for."""
    call()
    start = time.process_time()
    for _ in range(repeat):
        call()
    return (time.process_time() - start) / repeat


def _flops(call: Any) -> int:
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        call()
    return int(counter.get_total_flops())


def _onnxruntime(extractor: Any, inputs: Any, spinning: bool) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.intra_op.allow_spinning", str(int(spinning)))
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        extractor.artifact.onnx, options, providers=["CPUExecutionProvider"]
    )
    return lambda: session.run(None, {"images": inputs})
