"""`python -m tests.faults`: the long form. It prints its seed and a table, and exits with 1 where anything is wrong."""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
import traceback
from collections.abc import Sequence

from tests.faults import census
from tests.faults.census import Census
from tests.faults.plan import Attempt, long_plan
from tests.faults.report import Report
from tests.faults.rig import Rig, open_rig
from tests.faults.verdict import Verdict
from tests.faults.violation import ViolationError

_ATTEMPT_SECONDS = 120.0
_MEND_SECONDS = 60.0


def main() -> int:
    arguments = _arguments()
    seed = arguments.seed or f"{time.time_ns() // 1_000_000 % 1_000_000_000}"
    attempts = [attempt for attempt in long_plan(seed, arguments.scale) if _is_meant(attempt, arguments.only)]
    print(f"seed {seed}: {sum(attempt.times for attempt in attempts)} trials", flush=True)
    report = asyncio.run(_try_all(attempts))
    print(report.table())
    for attempt, problems in report.failures:
        print(f"\n{attempt.name}: again with --seed {seed} --scale {arguments.scale:g} --only '{attempt.name}'")
        print("\n".join(f"  {problem}" for problem in problems[:10]))
    return 1 if report.failures else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description="Break the system, and look.")
    parser.add_argument("--seed", help="what chance begins with; printed by each run")
    parser.add_argument("--scale", type=float, default=1.0, help="how much of it to try; 0.1 is a tenth")
    parser.add_argument("--only", default="", help="a fault, or one attempt of it: 'random schedule:17'")
    return parser.parse_args()


def _is_meant(attempt: Attempt, only: str) -> bool:
    return only in {"", attempt.fault, attempt.name}


async def _try_all(attempts: Sequence[Attempt]) -> Report:
    report = Report()
    async with open_rig() as rig:
        before = await census.take_warm(rig)
        for attempt in attempts:
            began = time.monotonic()
            verdict = await _try(rig, attempt)
            report.add(attempt, verdict)
            print(_progress(attempt, verdict, time.monotonic() - began), flush=True)
        report.add(*await _leaks(rig, before))
    return report


async def _try(rig: Rig, attempt: Attempt) -> Verdict:
    """Try it on a system that is whole, and say what violated what."""
    verdict = Verdict()
    try:
        async with asyncio.timeout(_MEND_SECONDS):
            await rig.mend()
            await rig.configure(**attempt.settings)
        async with asyncio.timeout(_ATTEMPT_SECONDS):
            verdict.add(await attempt.run(rig))
    except (ViolationError, TimeoutError) as error:
        verdict.problems.append(f"{type(error).__name__}: {error}")
    except Exception:  # noqa: BLE001 # one trial that fails in a new way must not hide what the others find
        verdict.problems.append(traceback.format_exc())
    if verdict.problems:
        print("\n".join([f"--- {attempt.name}", *attempt.details, *verdict.problems, rig.tails()]), flush=True)
    return verdict


async def _leaks(rig: Rig, before: Census) -> tuple[Attempt, Verdict]:
    """What the system holds in the end, as one more row of the table."""

    async def count(rig: Rig) -> Verdict:
        return Verdict(problems=[f"left behind: {what}" for what in await census.settles(rig, before)])

    attempt = Attempt("left behind", 0, count, [])
    return attempt, await _try(rig, attempt)


def _progress(attempt: Attempt, verdict: Verdict, seconds: float) -> str:
    outcome = f"{len(verdict.problems)} PROBLEMS" if verdict.problems else "ok"
    return f"{attempt.name}: {outcome}, {verdict.tokens:,} tokens, {seconds:.1f} s"


if __name__ == "__main__":
    sys.exit(main())
