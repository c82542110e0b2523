"""Circular borders as slices and concatenations.

Core ML's converter refuses them, and they break XNNPACK's partition into five (ExecuTorch) or seven (TFLite).
ONNX has the padding itself.

    pad(x, [1, 2], mode="circular")   becomes   cat(x[n-1:n], x, x[0:2])
"""

from __future__ import annotations

from acmix.toolkit.rewrites._border import BorderPad

REWRITE = BorderPad("circular_pad", ("circular",), targets=("coreml", "executorch", "tflite"))
