"""What a user watches while converters work: a line a target on a terminal, a line a stage elsewhere."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from types import TracebackType

from rich.console import Console
from rich.live import Live
from rich.table import Table

from acmix.toolkit.pipeline import Stage

WORDS: dict[Stage, str] = {
    "capture": "capturing",
    "wait": "waiting for the capture",
    "lower": "lowering",
    "verify": "running the saved file",
    "done": "done",
    "failed": "failed",
}


@dataclass
class _Line:
    stage: Stage
    begin: float
    spent_s: dict[Stage, float] = field(default_factory=dict)


class StageLines:
    """A context manager whose `progress` fits the pipeline; safe to call from its threads."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.lines: dict[str, _Line] = {}
        self.lock = threading.Lock()
        self.live = Live(get_renderable=self._table, console=console, refresh_per_second=8, transient=True)

    def __enter__(self) -> StageLines:
        if self.console.is_terminal:
            self.live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: object, trace: TracebackType | None) -> None:
        if self.console.is_terminal:
            self.live.stop()

    def progress(self, target: str, stage: Stage, seconds: float) -> None:
        """Note that a target (or '' for all) enters a stage."""
        now = time.perf_counter()
        with self.lock:
            line = self.lines.get(target)
            if line is None:
                self.lines[target] = _Line(stage, now)
            else:
                line.spent_s[line.stage] = now - line.begin
                line.stage, line.begin = stage, now
            if stage != "capture" and target and "" in self.lines and stage == "lower":
                self.lines[""].stage = "done"
        if not self.console.is_terminal and stage in ("lower", "verify", "done", "failed"):
            spent = f" ({seconds:.1f} s before)" if seconds else ""
            self.console.print(f"{target or 'model'}: {WORDS[stage]}{spent}")

    def _table(self) -> Table:
        table = Table.grid(padding=(0, 2))
        now = time.perf_counter()
        with self.lock:
            for target, line in self.lines.items():
                ended = line.stage in ("done", "failed")
                seconds = sum(line.spent_s.values()) + (0.0 if ended else now - line.begin)
                table.add_row(target or "model", WORDS[line.stage], f"{seconds:5.1f} s")
        return table
