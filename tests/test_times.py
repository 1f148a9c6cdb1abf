"""Times at the SDK's door, in time zones where mistakes show."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, timezone

import pytest

from server.times import to_local, to_utc


@pytest.fixture(params=["UTC", "Asia/Shanghai", "America/New_York", "Europe/Berlin"])
def time_zone(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("TZ", request.param)
    time.tzset()
    yield request.param
    monkeypatch.undo()
    time.tzset()


def test_a_local_time_comes_back_to_the_microsecond(time_zone: str) -> None:
    now = datetime.now().replace(microsecond=123457)
    assert to_utc(now).tzinfo is UTC
    assert to_local(to_utc(now)) == now
    assert to_local(to_utc(now)).tzinfo is None


def test_a_moment_comes_back_whatever_the_zone(time_zone: str) -> None:
    for moment in (datetime(2026, 7, 1, 23, 59, 59, 999999, UTC), datetime(1969, 12, 31, 23, 0, 0, 1, UTC)):
        assert to_utc(to_local(moment)) == moment


def test_an_aware_time_is_taken_at_its_word(time_zone: str) -> None:
    elsewhere = datetime(2026, 1, 2, 3, 4, 5, 6, timezone(timedelta(hours=5, minutes=30)))
    assert to_utc(elsewhere) == elsewhere


@pytest.mark.parametrize("time_zone", ["Europe/Berlin"], indirect=True)
def test_both_hours_come_back_when_the_clock_goes_back(time_zone: str) -> None:
    first = datetime(2026, 10, 25, 0, 30, 0, 1, UTC)
    second = first + timedelta(hours=1)
    assert to_local(first) == to_local(second)  # 02:30 on the clock, twice
    assert [to_utc(to_local(first)), to_utc(to_local(second))] == [first, second]


@pytest.mark.parametrize("time_zone", ["Asia/Shanghai"], indirect=True)
def test_local_means_the_zone_of_the_process(time_zone: str) -> None:
    assert to_local(datetime(2026, 1, 1, 20, 0, tzinfo=UTC)) == datetime(2026, 1, 2, 4, 0)  # noqa: DTZ001 - local
