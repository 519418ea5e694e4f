"""The EfficientAD detector: networks, files, training by anomalib, inference without torch.

Uses `vision.images` and `vision.networks`.
"""
