"""One network at two sizes: in two files, or in one file of two functions that store their weights once?

python tests/benchmarks/shared_weights.py [--target tflite] [--model efficientnet_lite0] [--sizes 160,224]

Each runtime's own way, by its stock converter: TFLite signatures, ExecuTorch methods, Core ML functions (no runtime
here, so sizes only). Prints bytes, the worst difference from eager float32, and latencies, interleaved, one thread.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from acmix.toolkit import capture
from acmix.toolkit.source import find_model
from acmix.toolkit.spec import TensorSpec

RUNS = 60
Inference = Callable[[], np.ndarray]


@dataclass(frozen=True)
class Shaped:
    """The network at one size, with an input; weights of its own that equal those at the other sizes."""

    name: str
    module: nn.Module
    image: Tensor

    @property
    def program(self) -> torch.export.ExportedProgram:
        return torch.export.export(self.module, (self.image,))


@dataclass(frozen=True)
class Trial:
    """What a format makes of it: bytes of two files and of one, inferences by (form, size)."""

    apart_bytes: int
    together_bytes: int
    inferences: dict[tuple[str, str], Inference]


def size_of(path: Path) -> int:
    """Of a file, or of all files of a package."""
    return path.stat().st_size if path.is_file() else sum(f.stat().st_size for f in path.rglob("*") if f.is_file())


def tflite(nets: Sequence[Shaped], folder: Path) -> Trial:
    """Signatures of one .tflite."""
    import litert_torch
    from ai_edge_litert.interpreter import Interpreter

    inferences: dict[tuple[str, str], Inference] = {}

    def load(file: Path, form: str, net: Shaped, signature: str) -> None:
        runner = Interpreter(model_path=str(file), num_threads=1).get_signature_runner(signature)
        (given,), image = runner.get_input_details(), net.image.numpy()
        inferences[form, net.name] = lambda: next(iter(runner(**{given: image}).values()))

    apart = []
    for net in nets:
        apart.append(folder / f"{net.name}.tflite")
        litert_torch.convert(net.module, (net.image,)).export(str(apart[-1]))
        load(apart[-1], "apart", net, "serving_default")
    first, *others = nets
    converter = litert_torch.signature(first.name, first.module, (first.image,))
    for net in others:
        converter = converter.signature(net.name, net.module, (net.image,))
    together = folder / "together.tflite"
    converter.convert().export(str(together))
    for net in nets:
        load(together, "together", net, net.name)
    return Trial(sum(map(size_of, apart)), size_of(together), inferences)


def executorch(nets: Sequence[Shaped], folder: Path) -> Trial:
    """Methods of one .pte."""
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower
    from executorch.runtime import Runtime

    inferences: dict[tuple[str, str], Inference] = {}

    def write(file: Path, form: str, chosen: Sequence[Shaped]) -> int:
        programs = {net.name: net.program for net in chosen}
        lowered = to_edge_transform_and_lower(programs, partitioner={n: [XnnpackPartitioner()] for n in programs})
        file.write_bytes(lowered.to_executorch().buffer)
        loaded = Runtime.get().load_program(file)
        for net in chosen:
            method = loaded.load_method(net.name)
            assert method is not None
            inferences[form, net.name] = lambda method=method, net=net: method.execute([net.image])[0].numpy()  # type: ignore[misc]
        return size_of(file)

    apart = sum(write(folder / f"{net.name}.pte", "apart", [net]) for net in nets)
    return Trial(apart, write(folder / "together.pte", "together", nets), inferences)


def coreml(nets: Sequence[Shaped], folder: Path) -> Trial:
    """Functions of one .mlpackage, float16 as by default."""
    import coremltools
    from coremltools.models.utils import MultiFunctionDescriptor, save_multifunction

    functions = MultiFunctionDescriptor()
    apart = []
    for net in nets:
        made = coremltools.convert(
            net.program.run_decompositions({}), minimum_deployment_target=coremltools.target.iOS18
        )
        apart.append(folder / f"{net.name}.mlpackage")
        made.save(str(apart[-1]))
        functions.add_function(str(apart[-1]), src_function_name="main", target_function_name=net.name)
    functions.default_function_name = nets[-1].name
    save_multifunction(functions, str(folder / "together.mlpackage"))
    return Trial(sum(map(size_of, apart)), size_of(folder / "together.mlpackage"), {})


FORMATS = {"tflite": tflite, "executorch": executorch, "coreml": coreml}


def medians_ms(inferences: dict[tuple[str, str], Inference]) -> dict[tuple[str, str], float]:
    """Of each inference, all in turns."""
    taken: dict[tuple[str, str], list[int]] = {key: [] for key in inferences}
    for number in range(RUNS + 3):
        for key, run in inferences.items():
            begin = time.perf_counter_ns()
            run()
            if number >= 3:
                taken[key].append(time.perf_counter_ns() - begin)
    return {key: float(np.median(times)) / 1e6 for key, times in taken.items()}


def shaped(model: str, size: int) -> Shaped:
    """The catalog's model at a size, with its own weights."""
    source = find_model(model, (TensorSpec("image", (1, 3, size, size), layout="nchw"),))
    image = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(size))
    return Shaped(f"at_{size}", capture.build(source, None).module, image)


def main() -> None:
    """The program: the bytes, and a row a size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="efficientnet_lite0")
    parser.add_argument("--sizes", default="160,224")
    parser.add_argument("--target", choices=list(FORMATS), default="tflite")
    arguments = parser.parse_args()
    nets = [shaped(arguments.model, int(size)) for size in arguments.sizes.split(",")]
    table = Table("size", "worst error", "ms in two files", "ms in one", box=None)
    with tempfile.TemporaryDirectory() as scratch:
        trial = FORMATS[arguments.target](nets, Path(scratch))
        times = medians_ms(trial.inferences)
        for net in nets if times else ():
            found = (trial.inferences[form, net.name]() for form in ("apart", "together"))
            with torch.no_grad():
                wanted = net.module(net.image).numpy()
            error = max(float(np.abs(one - wanted).max()) for one in found)
            table.add_row(net.name, f"{error:.1e}", *(f"{times[form, net.name]:.2f}" for form in ("apart", "together")))
    screen = Console(width=120)
    apart, together = trial.apart_bytes / 1e6, trial.together_bytes / 1e6
    screen.print(f"{arguments.model} on {arguments.target}: {apart:.2f} MB in two files, {together:.2f} MB in one")
    if times:
        screen.print(table)


if __name__ == "__main__":
    main()
