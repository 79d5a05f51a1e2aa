"""Bundles that hold everything but a network."""

import hashlib

import numpy as np

from protocol.bundle import GOLDEN, ONNX, Golden, Manifest, golden_bytes, pack_bundle


def bundle(counter: int, run_id: str = "run-1") -> bytes:
    zeros = np.zeros((1, 1), np.float32)
    onnx, golden = f"network {counter}".encode(), golden_bytes(Golden(zeros, zeros, zeros))
    files = {ONNX: hashlib.sha256(onnx).hexdigest(), GOLDEN: hashlib.sha256(golden).hexdigest()}
    manifest = Manifest(
        counter=counter,
        parent="",
        run_id=run_id,
        robot={},
        task={},
        transform={},
        runner="single",
        inputs=[],
        outputs=[],
        control_rate_hz=10.0,
        action_repeat=1,
        action_delay_ms=0.0,
        action_low=[],
        action_high=[],
        log_std=[],
        files=files,
        weights_sha256="",
        keys_sha256="",
        update=counter,
    )
    return pack_bundle(manifest, onnx, golden)
