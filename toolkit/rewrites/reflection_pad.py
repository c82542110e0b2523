"""Reflected and repeated borders as slices and concatenations.

XNNPACK pads with constants only: a reflected border is MIRROR_PAD outside of TFLite's delegate and two index
gathers outside of ExecuTorch's.  (TFLite's takes concatenations of up to five, so borders of up to two; wider ones
run outside, and still six times as fast as MIRROR_PAD.)  Core ML and ONNX Runtime have fast paddings of both kinds.

    pad(x, [1, 2], mode="reflect")   becomes   cat(x[1:2], x, x[n-2:n-1], x[n-3:n-2])
"""

from __future__ import annotations

from acmix.toolkit.rewrites._border import BorderPad

REWRITE = BorderPad("reflection_pad", ("reflect", "replicate"), targets=("executorch", "tflite"))
