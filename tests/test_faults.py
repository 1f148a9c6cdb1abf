"""The fault suite's short form: each fault once or twice. `make faults` is the long one, with a table in the end.

Ordered so that the servers are seldom set anew: each time takes them seconds.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from functools import partial

import pytest

from tests.faults import census
from tests.faults.bridge_faults import kill_and_come_back, kill_for_good
from tests.faults.cancel_faults import cancel, cancel_model
from tests.faults.census import Census
from tests.faults.client_faults import CLIENTS, stall_much
from tests.faults.database_faults import restart
from tests.faults.network_faults import lose_bridge_side, lose_database_beyond_the_lease, lose_database_for_a_moment
from tests.faults.plan import Trial, at_once
from tests.faults.retry_faults import (
    with_key,
    with_key_at_once,
    with_key_of_another_request,
    without_head,
    without_key,
)
from tests.faults.rig import Rig, open_rig
from tests.faults.schedule import draw_schedule, run_schedule
from tests.faults.server_faults import freeze_producer, kill_producer, terminate_producer
from tests.faults.tab_faults import send_at_once


@pytest.fixture(scope="module")
async def rig() -> AsyncIterator[Rig]:
    async with open_rig() as rig:
        yield rig


@pytest.fixture(scope="module")
async def at_first(rig: Rig) -> Census:
    """What the system holds before anything is broken."""
    return await census.take_warm(rig)


async def try_out(rig: Rig, *trials: Trial, tries: int = 1, settings: Mapping[str, str] = {}) -> None:
    """Try one after the other on a system that is whole, with these settings beyond the usual.

    tries: how often each is tried until it does well: more than once where it has to be quick, and a machine that does
        something else at that moment is no fault. The long form gives each but one.
    """
    for trial in trials:
        problems: list[str] = []
        for _ in range(tries):
            await rig.mend()
            await rig.configure(**settings)
            problems = (await trial(rig)).problems
            if not problems:
                break
        if problems:
            pytest.fail("\n".join([*problems, rig.tails()]))


async def test_however_a_client_leaves_or_stalls_what_was_said_is_kept(rig: Rig, at_first: Census) -> None:
    trials = [partial(trial, token=token) for trial in CLIENTS.values() for token in (1, 20, 50)]
    await try_out(rig, partial(at_once, trials=trials))


async def test_a_request_is_answered_twice_only_where_it_is_meant_twice(rig: Rig) -> None:
    trials: list[Trial] = [
        partial(with_key, token=5),
        partial(with_key, token=60),
        partial(with_key_at_once, times=6),
        with_key_of_another_request,
        without_key,
    ]
    await try_out(rig, partial(at_once, trials=trials))


async def test_a_request_whose_answer_never_began_is_answered_once(rig: Rig) -> None:
    await try_out(rig, partial(without_head, kills_the_bridge=True))


async def test_a_cancel_from_any_server_ends_the_stream_cleanly_and_soon(rig: Rig) -> None:
    trials = [partial(cancel, token=token, from_the_other=other) for token in (1, 100) for other in (False, True)]
    await try_out(rig, *trials, tries=3)


async def test_a_cancel_stops_the_model_within_five_tokens(rig: Rig) -> None:
    await try_out(rig, partial(cancel_model, from_the_other=True), tries=3)


async def test_the_second_of_two_tabs_stops_the_answer_of_the_first(rig: Rig) -> None:
    trials = [partial(send_at_once, policy="interrupt", by_page=by_page) for by_page in (False, True)]
    await try_out(rig, partial(at_once, trials=trials))


async def test_readers_that_stop_reading_hold_up_nobody_and_miss_nothing(rig: Rig) -> None:
    await try_out(rig, stall_much)


async def test_a_killed_server_loses_no_more_than_its_last_moment(rig: Rig) -> None:
    await try_out(rig, partial(kill_producer, token=150))


async def test_a_killed_bridge_loses_nothing(rig: Rig) -> None:
    await try_out(rig, partial(kill_and_come_back, token=50), partial(kill_for_good, token=20))


async def test_a_server_that_is_told_to_stop_keeps_what_it_can_not_finish(rig: Rig) -> None:
    await try_out(rig, partial(terminate_producer, token=30, tokens=4000, finishes=False))


async def test_a_server_that_was_frozen_for_long_can_change_nothing(rig: Rig) -> None:
    await try_out(rig, partial(freeze_producer, token=50))


async def test_a_postgres_that_is_restarted_loses_nothing(rig: Rig) -> None:
    await try_out(rig, partial(restart, token=50, mode="immediate"))


async def test_a_connection_that_is_lost_for_a_moment_loses_nothing(rig: Rig) -> None:
    trials = [
        partial(lose_bridge_side, token=50, how="cut", seconds=0.5),
        partial(lose_database_for_a_moment, token=50, how="cut"),
    ]
    await try_out(rig, *trials)


async def test_a_server_without_its_database_shows_nothing_that_is_not_kept(rig: Rig) -> None:
    await try_out(rig, partial(lose_database_beyond_the_lease, token=50, how="stall"))


@pytest.mark.parametrize("seed", ["short/7", "short/13"])
async def test_a_random_schedule_loses_nothing(rig: Rig, seed: str) -> None:
    await try_out(rig, partial(run_schedule, steps=draw_schedule(seed)))


async def test_nothing_of_all_this_is_left_behind(rig: Rig, at_first: Census) -> None:
    await rig.mend()
    assert await census.settles(rig, at_first) == []


# The default lease, a log that is written first, tabs that wait for each other: set together, since it takes seconds.
OTHERWISE = {"LEASE_SECONDS": "7", "RUN_LOG": "ahead", "RUN_CONFLICT": "enqueue"}


async def test_where_tabs_wait_for_each_other_both_are_answered(rig: Rig) -> None:
    await try_out(rig, partial(send_at_once, policy="enqueue", by_page=False), settings=OTHERWISE)


async def test_with_the_log_ahead_a_killed_server_loses_nothing_at_all(rig: Rig) -> None:
    await try_out(rig, partial(kill_producer, token=150), settings=OTHERWISE)
