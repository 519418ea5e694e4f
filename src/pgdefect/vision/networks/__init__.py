"""Pretrained networks: the registry, weights, export to ONNX, running without torch.

Uses `vision.images`.
"""
