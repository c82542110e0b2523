"""The verb `acmix profile`: its flags, and which of the ways to measure they mean. Heavy imports wait until it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from acmix.apps.verbs import Json, OwnNetwork, is_adaptive
from acmix.toolkit.errors import UsageError

DEFAULT_PRESET = "rapid"
DEFAULT_WAIT_S = 10.0


def profile(
    artifacts: Annotated[
        list[Path] | None, typer.Argument(metavar="ARTIFACT...", help="Artifacts; several are interleaved.")
    ] = None,
    preset: Annotated[
        str | None, typer.Option("--preset", metavar="rapid|quick|normal", help="How long; without it rapid.")
    ] = None,
    threads: Annotated[
        int | None, typer.Option("--threads", help="Runtime threads; without it 1, or what the device's file says.")
    ] = None,
    runs: Annotated[int | None, typer.Option("--runs", min=1, help="At least so many runs, not the preset's.")] = None,
    seconds: Annotated[
        float | None, typer.Option("--seconds", min=0.0, max=3600.0, help="At least so many seconds of runs.")
    ] = None,
    wait: Annotated[
        float | None,
        typer.Option("--wait", min=0.0, max=3600.0, help="Seconds to wait for a cool, idle machine (10); 0: do not."),
    ] = None,
    warm_up: Annotated[
        float | None,
        typer.Option("--warm-up", min=0.0, max=3600.0, help="Seconds to warm up at most, in each process (15)."),
    ] = None,
    photos: Annotated[Path | None, typer.Option("--photos", help="Each run takes the next photo of a folder.")] = None,
    show: Annotated[Path | None, typer.Option("--show", help="Only show a saved file or a journal.")] = None,
    device: Annotated[
        str | None, typer.Option("--device", metavar="NAME[,NAME]", help="Where: names of `acmix devices list`.")
    ] = None,
    layers: Annotated[bool, typer.Option("--layers", help="Where the time goes, module by module.")] = False,
    plot: Annotated[Path | None, typer.Option("--plot", metavar="FILE.png", help="A picture, with --layers.")] = None,
    model: OwnNetwork = None,
    as_json: Json = False,
) -> None:
    """Latency on this host or on devices, with a verdict on whether to believe it; raw samples kept."""
    from acmix.apps import profiles

    if show is not None and not artifacts:
        return profiles.show(show, as_json)
    if show is not None or not artifacts:
        raise UsageError(
            "acmix profile measures artifacts, or shows one measurement.\n"
            "Write `acmix profile build/lsnet_t-tflite-float32`, or `acmix profile --show profile-....json`."
        )
    if layers or plot is not None or model is not None:
        from acmix.apps import layers as by_layer

        others = {"--seconds": seconds, "--wait": wait, "--warm-up": warm_up, "--photos": photos}
        by_layer.refuse(artifacts, others, layers)
        count = profiles.plan_of(preset or DEFAULT_PRESET).runs if runs is None else runs
        wanted = by_layer.LayerFlags(count, threads, model, plot)
        if device is not None:
            from acmix.apps.board import layers as board_layers

            return board_layers.show(artifacts, device, wanted, as_json)
        return by_layer.show(artifacts, wanted, as_json)
    if any(is_adaptive(folder) for folder in artifacts):
        from acmix.apps import adaptive, adaptive_flags

        given = {"--preset": preset, "--runs": runs, "--seconds": seconds, "--wait": wait, "--warm-up": warm_up}
        adaptive_flags.refuse_given(given | {"--device": device}, adaptive_flags.OVER_PHOTOS)
        return adaptive.profile(artifacts, photos, 1 if threads is None else threads, as_json)
    wait_s = DEFAULT_WAIT_S if wait is None else wait
    flags = profiles.ProfileFlags(preset or DEFAULT_PRESET, runs, seconds, threads, wait_s, photos, warm_up)
    if device is not None:
        from acmix.apps.board import profile as board

        return board.profile(artifacts, device, flags, as_json)
    return profiles.profile(artifacts, flags, as_json)
