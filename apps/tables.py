"""Tables for people: what was exported, where operators run, what was measured."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from acmix.toolkit.verify import SNR_LIMIT_DB

if TYPE_CHECKING:
    from acmix.toolkit.artifact import Artifact
    from acmix.toolkit.catalog import ModelCard
    from acmix.toolkit.evaluate import Evaluation
    from acmix.toolkit.manifest import Manifest, Quantization
    from acmix.toolkit.request import Outcome
    from acmix.toolkit.target import Placement
    from acmix.toolkit.verify import Agreement, Proof


def table(*columns: str, caption: str = "") -> Table:
    """An empty table; columns that begin with '>' are aligned right."""
    made = Table(caption=caption or None, caption_justify="left", box=None, padding=(0, 2, 0, 0), header_style="bold")
    for column in columns:
        right = column.startswith(">")
        made.add_column(column.lstrip(">"), justify="right" if right else "left", no_wrap=right or not made.columns)
    return made


def snr(value: float | None) -> str:
    """An SNR as people read it."""
    if value is None:
        return "no signal"
    if value >= SNR_LIMIT_DB:
        return "equal"
    return "NaN" if value <= -SNR_LIMIT_DB else f"{value:.1f}"


def mark(fine: bool) -> Text:
    """A tick or a cross."""
    return Text("✓", "green") if fine else Text("✗", "red")


def verdict(proof: Proof) -> Text:
    """The verdict, with a green tick only for what ran in its own runtime and agreed."""
    if proof.executed_by == "reference" and proof.verdict == "passed":
        return Text("✓ reference", "cyan")
    return {
        "passed": Text("✓ passed", "green"),
        "failed": Text("✗ failed", "red"),
        "not executed": Text("not executed", "yellow"),
    }[proof.verdict]


def delegation(placement: Placement) -> str:
    """'66 of 66 in 1 partition', or that only the device knows."""
    total = len(placement.operators)
    if any(op.delegated is None for op in placement.operators) or not total:
        return f"{total}, device decides"
    inside = total - len(placement.fallbacks)
    parts = (
        ""
        if placement.partitions is None
        else f" in {placement.partitions} partition{'s' * (placement.partitions != 1)}"
    )
    return f"{inside} of {total}{parts}"


def outside(placement: Placement) -> str:
    """The share of the arithmetic outside the delegate; '' where only the device knows."""
    if any(op.delegated is None for op in placement.operators):
        return ""
    return f"{placement.macs_outside_share:.1%} of multiply-accumulates outside the delegate; "


def _worst(agreements: Iterable[Agreement]) -> Agreement | None:
    return min(agreements, key=lambda a: SNR_LIMIT_DB if a.snr_db is None else a.snr_db, default=None)


def outcome_row(artifact: Artifact) -> list[str | Text]:
    """Target, size, SNR, top-1 agreement, delegated operators, verdict."""
    manifest = artifact.manifest
    worst = _worst(manifest.proof.agreements)
    top1 = "-" if worst is None or worst.top1_agreement is None else f"{worst.top1_agreement:.0%}"
    return [
        manifest.target.name,
        manifest.recipe.name,
        f"{artifact.size_bytes / 1e6:.2f}",
        "-" if worst is None else snr(worst.snr_db),
        "-" if worst is None else f"{worst.asked_db:.0f}",
        top1,
        delegation(manifest.placement),
        verdict(manifest.proof),
    ]


OUTCOME_COLUMNS = (
    "target",
    "precision",
    ">MB",
    ">SNR dB",
    ">asked",
    ">same top-1",
    "operators delegated",
    "against eager",
)


def conditioning(manifest: Manifest) -> str:
    """Why less than the recipe's SNR was asked for; '' when it was not."""
    worst = _worst(manifest.proof.agreements)
    if worst is None or worst.asked_db >= worst.tolerance.snr_db:
        return ""
    if manifest.quantization is not None:
        return (
            f"{manifest.recipe.name} costs {manifest.model.name} more than usual: on {worst.worst_sample!r} integers "
            f"alone leave so little that {worst.asked_db:.0f} dB were asked for in place of "
            f"{worst.tolerance.snr_db:.0f}. Which layers: acmix analyze."
        )
    return (
        f"{manifest.model.name} amplifies rounding: on {worst.worst_sample!r} eager itself keeps so little under "
        f"{manifest.recipe.name} rounding that {worst.asked_db:.0f} dB were asked for in place of "
        f"{worst.tolerance.snr_db:.0f}{', as networks with random weights do' * manifest.model.weights.is_random}."
    )


def remarks(manifests: Sequence[Manifest]) -> Iterator[str]:
    """What an export has to say below its table: repairs, what little was asked for, what a program has to do."""
    quantized = [m.quantization for m in manifests if m.quantization is not None]
    yield from dict.fromkeys(repair for one in quantized for repair in one.repairs)
    yield from sorted({conditioning(manifest) for manifest in manifests} - {""})
    yield from needs(manifests)


def needs(manifests: Iterable[Manifest]) -> list[str]:
    """What programs that load the files have to do, a sentence each."""
    return list(dict.fromkeys(f"{m.target.name}: {need}." for m in manifests for need in m.target.needs))


def outcomes(results: Sequence[Outcome]) -> Table:
    """What became of every target of one export."""
    made = table(*OUTCOME_COLUMNS, ">lowered in s")
    for result in results:
        if result.artifact is None:
            made.add_row(result.target, "", "", "", "", "", Text("✗ not exported", "red"), "")
        else:
            made.add_row(*outcome_row(result.artifact), f"{result.artifact.manifest.timings_s['lower']:.1f}")
    return made


def models(cards: Sequence[ModelCard]) -> Table:
    """The zoo, with what its papers claim."""
    made = table("model", "family", ">parameters", ">MMAC", ">top-1 % (published)", "weights")
    for card in cards:
        claims = card.claims
        made.add_row(
            card.name,
            card.family,
            f"{claims.parameters:,}" if claims.parameters else "-",
            f"{claims.macs / 1e6:.0f}" if claims.macs else "-",
            f"{claims.top1_percent}" if claims.top1_percent else "-",
            "ImageNet, from a package" if card.packaged_weights else "random, or --weights FILE",
        )
    return made


def _headings(placement: Placement) -> tuple[str, str]:
    """Of the columns for place and reason: where only the device knows, both are a prediction."""
    predicted = any(operator.delegated is None for operator in placement.operators)
    return ("predicted to run on", "why") if predicted else ("runs on", "why not delegated")


def operators(placement: Placement) -> Table:
    """Operators by kind and place, those outside the delegate with their reasons."""
    where, why = _headings(placement)
    made = table("operator", ">count", where, ">% of MACs", why, caption=placement.determined_by)
    total = sum(op.macs for op in placement.operators) or 1
    groups = Counter((op.kind, op.runs_on, op.reason) for op in placement.operators)
    for (kind, runs_on, reason), count in sorted(groups.items(), key=lambda g: (not g[0][2], -g[1], g[0])):
        macs = sum(op.macs for op in placement.operators if (op.kind, op.runs_on, op.reason) == (kind, runs_on, reason))
        made.add_row(kind, str(count), runs_on, f"{100 * macs / total:.1f}" if macs else "", reason)
    return made


def every_operator(placement: Placement) -> Table:
    """Every operator, in the order of the file."""
    where, why = _headings(placement)
    made = table(">#", "operator", "name", where, ">MMAC", why, caption=placement.determined_by)
    for i, op in enumerate(placement.operators):
        macs = f"{op.macs / 1e6:.2f}" if op.macs else ""
        made.add_row(str(i), op.kind, op.name, op.runs_on, macs, op.reason)
    return made


def _second_opinion(proof: Proof) -> str:
    """How far the reference evaluator is from the runtime; '' where only one of them ran."""
    if proof.reference_error:
        return f"The reference evaluator failed: {proof.reference_error}"
    told = (f"{one.output} {snr(one.snr_db)} dB (worst on {one.worst_sample})" for one in proof.differences)
    return f"Reference evaluator against the runtime: {', '.join(told)}" if proof.differences else ""


def agreements(proof: Proof) -> Table:
    """Every output against eager float32, and of a quantized file against its simulation."""
    made = table(
        "output", "against", ">samples", ">worst SNR dB", ">max abs", ">cosine", ">same top-1", "worst on", ">asked dB",
        "",
        caption=_second_opinion(proof),
    )  # fmt: skip
    against = [(a, "eager") for a in proof.agreements] + [(a, "simulation") for a in proof.conversion]
    for a, other in against:
        made.add_row(
            a.output,
            other,
            str(a.samples),
            snr(a.snr_db),
            f"{a.max_abs:.2e}",
            "-" if a.cosine is None else f"{a.cosine:.7f}",
            "-" if a.top1_agreement is None else f"{a.top1_agreement:.0%}",
            a.worst_sample,
            f"{a.asked_db:.0f}",
            mark(a.passed),
        )
    return made


def percent(share: float | None, count: int) -> str:
    """'88.2 % (441 of 500)', '-' where unknown."""
    return "-" if share is None else f"{100 * share:.1f} % ({round(share * count)} of {count})"


def evaluations(results: Sequence[Evaluation]) -> Table:
    """Accuracy on labelled photos, and agreement with eager."""
    made = table("artifact", ">photos", ">top-1", ">top-5", ">eager top-1", ">same top-1 as eager", ">worst SNR dB")
    for e in results:
        shares = (percent(s, e.photos) for s in (e.top1, e.top5, e.eager_top1, e.agreement))
        made.add_row(e.artifact, str(e.photos), *shares, "-" if e.worst_snr_db is None else snr(e.worst_snr_db))
    return made


def summary(manifest: Manifest) -> Table:
    """The manifest's first page."""
    made = Table.grid(padding=(0, 2))
    weights = manifest.model.weights
    made.add_row("model", f"{manifest.model.name} ({manifest.model.source})")
    made.add_row(
        "weights",
        f"{f'RANDOM, seed {weights.seed}' if weights.is_random else weights.kind} {weights.source}",
    )
    made.add_row("size", f"{manifest.model.parameters:,} parameters, {manifest.model.macs / 1e6:.1f} MMAC")
    for name, specs in (("inputs", manifest.file_inputs), ("outputs", manifest.file_outputs)):
        made.add_row(name, ", ".join(f"{s.name} {'x'.join(map(str, s.shape))} {s.dtype} {s.layout}" for s in specs))
    made.add_row("precision", f"{manifest.recipe.name}: {manifest.recipe.description}")
    for kind, said in (("needs", manifest.target.needs), ("note", manifest.target.notes)):
        for sentence in said:
            made.add_row(kind, sentence)
    prepared = manifest.preparation
    if prepared.error_float64 is not None:
        made.add_row("prepared", f"inference form, {prepared.error_float64:.1e} from the published one in float64")
    for form, times in Counter(chosen.form for chosen in prepared.forms).items():
        made.add_row("form", f"{form}, {times} times")
    for rule in prepared.rewrites:
        made.add_row("rewrite", f"{rule.name}, {rule.times} times ({rule.claim})")
    if manifest.quantization is not None:
        for title, text in _integers(manifest.quantization):
            made.add_row(title, text)
    made.add_row("same bytes", manifest.target.nondeterminism or "yes: exporting again gives the same file")
    made.add_row("against eager", Text.assemble(verdict(manifest.proof), " ", manifest.proof.reason))
    return made


def _integers(quantization: Quantization) -> Iterator[tuple[str, str]]:
    """What of a quantized file is integers, and what stays float."""
    yield "int8", f"weights of {quantization.layers} layers, {quantization.tensors} activations"
    if quantization.calibration is not None:
        samples = quantization.calibration.samples
        yield "calibrated", f"on {samples.count} of {samples.name}, observer {quantization.calibration.observer}"
    for repair in quantization.repairs:
        yield "repair", repair
    for kept in quantization.kept_float:
        yield "stays float", f"{kept.operator}, {kept.count} times: {kept.reason}"
