"""ONNX Runtime as acmix runs it: on the CPU, with sums of integers that no processor saturates."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from acmix.toolkit.errors import UsageError

PROVIDER = "CPUExecutionProvider"
EXACT_SUMS = ("session.x64quantprecision", "1")
"""Sums of int8 products in 32 bits where the processor has no VNNI: by default ONNX Runtime saturates them there."""


def load(file: Path, threads: int, optimised: Path | None = None, profile: Path | None = None) -> Any:
    """A session of the file. optimised, profile: where it writes the graph that it runs, and the times of its kernels.

    Raises UsageError where the runtime refuses the file.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry(*EXACT_SUMS)
    options.log_severity_level = 3
    if optimised is not None:
        options.optimized_model_filepath = str(optimised)
    if profile is not None:
        options.enable_profiling, options.profile_file_prefix = True, str(profile)
    try:
        return onnxruntime.InferenceSession(str(file), options, providers=[PROVIDER])
    except Exception as error:
        reason = str(error).replace(str(file), file.name)
        raise UsageError(
            f"ONNX Runtime {onnxruntime.__version__} cannot load '{file.name}': {reason}. "
            "The file is damaged or not ONNX: export it again."
        ) from error
