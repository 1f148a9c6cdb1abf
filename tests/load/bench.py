"""`make bench`: the SDK in a web server against server and bridge, side by side on this machine.

Both take turns, so that a machine which is busy with other things is busy for both; what counts is the ratio of the
medians.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
import uvloop

from tests.load import sse_client
from tests.load.sse_client import Load, Run, WrongAnswerError
from tests.load.systems import ROOT, System, open_baseline, open_ours, temporary_folder

RESULTS = ROOT / "bench.json"
_TIMEOUT = 120.0
_SETTLE = 0.25
"""Seconds after the last answer in which what a system still does for it counts."""
_PACKAGES = ("openai-chatkit", "grpcio", "protobuf", "starlette", "uvicorn", "uvloop", "sse-starlette", "asyncpg")


@dataclass(frozen=True, slots=True)
class Scenario:
    """A load, and how often each system gets it."""

    name: str
    title: str
    load: Load
    repeats: int


@dataclass(frozen=True, slots=True)
class Row:
    """A line of the table: what is compared, and what it has to reach.

    figure: its name among the figures of a measurement.
    limit: of the ratio, ours to the baseline; or of our value alone where `is_absolute`.
    """

    label: str
    figure: str
    limit: float | None = None
    is_absolute: bool = False
    is_minimum: bool = False
    digits: int = 1

    def is_met(self, ours: float, ratio: float) -> bool | None:
        """Whether the target is reached. None without one."""
        if self.limit is None:
            return None
        value = ours if self.is_absolute else ratio
        return value >= self.limit if self.is_minimum else value <= self.limit

    @property
    def target(self) -> str:
        """Sample: "ratio ≤ 0.8"."""
        if self.limit is None:
            return ""
        return f"{'ours' if self.is_absolute else 'ratio'} {'≥' if self.is_minimum else '≤'} {self.limit:g}"


@dataclass(frozen=True, slots=True)
class Comparison:
    """All figures of a scenario, by system, one for each repetition."""

    scenario: Scenario
    figures: dict[str, list[dict[str, float]]] = field(default_factory=lambda: {"baseline": [], "ours": []})

    def median(self, system: str, figure: str) -> float:
        """The median of a figure over the repetitions."""
        return statistics.median(figures[figure] for figures in self.figures[system])


FAST = Scenario("fast", "As fast as they come", Load(streams=20, deltas=1000), repeats=5)
PACED = Scenario("paced", "Paced", Load(streams=300, deltas=200, per_second=50), repeats=3)
IDLE = Scenario("idle", "Idle", Load(streams=1, deltas=100, per_second=20), repeats=3)

ROWS = {
    "fast": [
        Row("events per second", "events_per_second", 1.8, is_minimum=True, digits=0),
        Row("CPU per event, µs", "cpu_us_per_event", 0.8),
        Row("first byte p50, ms", "first_byte_p50_ms"),
    ],
    "paced": [
        Row("CPU, s", "cpu_seconds", 1.0, digits=2),
        Row("CPU per event, µs", "cpu_us_per_event"),
        Row("token delay p50, ms", "delay_p50_ms"),
        Row("token delay p99, ms", "delay_p99_ms", 60, is_absolute=True),
        Row("first byte p50, ms", "first_byte_p50_ms", 0.25),
        Row("first byte p99, ms", "first_byte_p99_ms", 0.25),
        Row("memory (RSS), MB", "rss_mb", digits=0),
        Row("memory (PSS), MB", "pss_mb", digits=0),
    ],
    "idle": [
        Row("token delay p50, ms", "delay_p50_ms", digits=2),
        Row("token delay p99, ms", "delay_p99_ms", 5, is_absolute=True, digits=2),
    ],
}
_PARTS = ("server", "bridge", "postgres")

Parts = Mapping[str, float]


async def compare(scenarios: Sequence[Scenario]) -> tuple[list[Comparison], str]:
    """Start both systems and put them through the scenarios. Also the version of the PostgreSQL that ran."""
    async with AsyncExitStack() as stack:
        folder = stack.enter_context(temporary_folder())
        _say("Starting both systems …")
        systems = [
            await stack.enter_async_context(open_baseline(folder)),
            await stack.enter_async_context(open_ours(folder)),
        ]
        for system in systems:
            await measure(system, replace(FAST.load, deltas=500))
        return [await _compare(scenario, systems) for scenario in scenarios], systems[1].version_of("postgres")


async def _compare(scenario: Scenario, systems: Sequence[System]) -> Comparison:
    comparison = Comparison(scenario)
    for turn in range(scenario.repeats):
        for system in systems:
            figures = await measure(system, scenario.load)
            comparison.figures[system.name].append(figures)
            _say(
                f"  {scenario.name} {turn + 1}/{scenario.repeats} {system.name:<9}"
                f"{figures['events_per_second']:>9,.0f} events/s {figures['cpu_us_per_event']:>6.1f} µs CPU/event"
                f"{figures['first_byte_p50_ms']:>8.1f} ms first byte {figures['delay_p99_ms']:>9.2f} ms delay p99"
            )
    return comparison


async def measure(system: System, load: Load) -> dict[str, float]:
    """Put a system under load once. Raises WrongAnswerError where a stream isn't whole."""
    gc.collect()
    cpu_before, busy_before, began = system.cpu_seconds(), _busy_seconds(), time.monotonic()
    duration = load.deltas / load.per_second if load.per_second else 0.0
    memory = asyncio.create_task(_rss_after(duration * 0.75, system))
    try:
        run = await sse_client.run(system.port, load, _TIMEOUT)
        await asyncio.sleep(_SETTLE)
        rss = await memory
    finally:
        memory.cancel()
    cpu_after = system.cpu_seconds()
    cpu = {part: cpu_after[part] - before for part, before in cpu_before.items()}
    others = (_busy_seconds() - busy_before - sum(cpu.values())) / (time.monotonic() - began) / (os.cpu_count() or 1)
    return {**_figures(run, cpu, rss, system.pss()), "others_share": max(0.0, others)}


def _busy_seconds() -> float:
    """What the whole machine was busy with, less this process."""
    times = psutil.cpu_times()
    busy = sum(getattr(times, kind, 0.0) for kind in ("user", "nice", "system", "irq", "softirq", "steal"))
    return float(busy) - time.process_time()


async def _rss_after(seconds: float, system: System) -> dict[str, int]:
    await asyncio.sleep(seconds)
    return system.rss()


def _figures(run: Run, cpu: Parts, rss: Parts, pss: Parts) -> dict[str, float]:
    events = sum(answer.events for answer in run.answers)
    wall = (max(answer.ended_at for answer in run.answers) - min(answer.sent_at for answer in run.answers)) / 1e9
    delays = [delay / 1e6 for answer in run.answers for delay in answer.delays]
    first_bytes = [(answer.first_byte_at - answer.sent_at) / 1e6 for answer in run.answers]
    return {
        "events": events,
        "wall_seconds": wall,
        "events_per_second": events / wall,
        "cpu_seconds": sum(cpu.values()),
        "cpu_us_per_event": sum(cpu.values()) / events * 1e6,
        "client_cpu_us_per_event": run.cpu_seconds / events * 1e6,
        "delay_p50_ms": _percentile(delays, 0.50),
        "delay_p99_ms": _percentile(delays, 0.99),
        "first_byte_p50_ms": _percentile(first_bytes, 0.50),
        "first_byte_p99_ms": _percentile(first_bytes, 0.99),
        "rss_mb": sum(rss.values()) / 2**20,
        "pss_mb": sum(pss.values()) / 2**20,
        **{f"{part}_cpu_us_per_event": seconds / events * 1e6 for part, seconds in cpu.items()},
        **{f"{part}_rss_mb": size / 2**20 for part, size in rss.items()},
        **{f"{part}_pss_mb": size / 2**20 for part, size in pss.items()},
    }


def _percentile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]


def _table(comparisons: Sequence[Comparison]) -> str:
    lines = [f"{'':<34}{'baseline':>11}{'ours':>11}{'ratio':>8}  {'target':<14}met?"]
    for comparison in comparisons:
        load = comparison.scenario.load
        pace = f" at {load.per_second:g}/s" if load.per_second else ""
        lines.append(f"\n{comparison.scenario.title}: {load.streams} x {load.deltas} deltas{pace}")
        lines += [_line(row, comparison) for row in ROWS[comparison.scenario.name]]
        lines.append(_line_of_parts(comparison))
    return "\n".join(lines)


def _line(row: Row, comparison: Comparison) -> str:
    baseline, ours = comparison.median("baseline", row.figure), comparison.median("ours", row.figure)
    ratio = ours / baseline
    met = {True: "yes", False: "NO", None: ""}[row.is_met(ours, ratio)]
    numbers = f"{baseline:>11,.{row.digits}f}{ours:>11,.{row.digits}f}{ratio:>8.2f}"
    return f"  {row.label:<32}{numbers}  {row.target:<14}{met}".rstrip()


def _line_of_parts(comparison: Comparison) -> str:
    shares = [f"{part} {comparison.median('ours', f'{part}_cpu_us_per_event'):.1f}" for part in _PARTS]
    client = [f"{comparison.median(system, 'client_cpu_us_per_event'):.1f}" for system in ("baseline", "ours")]
    others = max(comparison.median(system, "others_share") for system in ("baseline", "ours"))
    return (
        f"  µs per event in ours: {', '.join(shares)}; in the client: {client[0]} and {client[1]}\n"
        f"  meanwhile {others:.0%} of this machine went to others"
    )


def _report(comparisons: Sequence[Comparison], postgres: str) -> dict[str, Any]:
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _output_of("git", "describe", "--always", "--dirty", "--abbrev=40"),
        "machine": {"cpu": _cpu_model(), "cores": os.cpu_count(), "system": platform.platform()},
        "versions": {
            "python": platform.python_version(),
            "postgres": postgres,
            **{package: version(package) for package in _PACKAGES},
        },
        "scenarios": {
            comparison.scenario.name: {
                "load": asdict(comparison.scenario.load),
                "rows": [_row_report(row, comparison) for row in ROWS[comparison.scenario.name]],
                "figures": comparison.figures,
            }
            for comparison in comparisons
        },
    }


def _row_report(row: Row, comparison: Comparison) -> dict[str, Any]:
    baseline, ours = comparison.median("baseline", row.figure), comparison.median("ours", row.figure)
    ratio = ours / baseline
    return {
        "figure": row.figure,
        "baseline": baseline,
        "ours": ours,
        "ratio": ratio,
        "target": row.target,
        "met": row.is_met(ours, ratio),
    }


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def _output_of(*command: str) -> str:
    try:
        return subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _scenarios(names: Sequence[str], *, is_quick: bool) -> list[Scenario]:
    chosen = [scenario for scenario in (FAST, PACED, IDLE) if scenario.name in names]
    if not is_quick:
        return chosen
    return [replace(scenario, repeats=3 if scenario is FAST else 1) for scenario in chosen]


def _say(text: str) -> None:
    print(text, flush=True)


async def _run(scenarios: Sequence[Scenario]) -> int:
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    began = time.monotonic()
    comparisons, postgres = await compare(scenarios)
    RESULTS.write_text(json.dumps(_report(comparisons, postgres), indent=2) + "\n")
    _say(f"\n{_table(comparisons)}\n\n{time.monotonic() - began:.0f} s; all figures are in {RESULTS}")
    return 0


def main() -> int:
    """Exit with 1 where an answer was wrong or a system failed. A target missed is no failure: machines differ."""
    parser = argparse.ArgumentParser(prog="python -m tests.load.bench", description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--quick", action="store_true", help="fewer repetitions, under a minute")
    names = [scenario.name for scenario in (FAST, PACED, IDLE)]
    parser.add_argument("--only", nargs="+", choices=names, default=names, help="these scenarios alone")
    arguments = parser.parse_args()
    # Nothing here makes cycles, and a collection would show as a token's delay.
    gc.disable()
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(_run(_scenarios(arguments.only, is_quick=arguments.quick)))
    except (WrongAnswerError, TimeoutError, RuntimeError) as error:
        print(f"bench: {type(error).__name__}: {error}", file=sys.stderr)
        return 1
    except (KeyboardInterrupt, asyncio.CancelledError):
        print("bench: stopped", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
