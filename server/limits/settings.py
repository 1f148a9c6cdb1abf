"""The limits, as an operator sets them. 0 stands for "no limit" where a limit is about how many."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from chatkit_grpc.environment import Environment
from environs import validate as must_be


@dataclass(frozen=True, slots=True)
class LimitSettings:
    """The settings of limits. README.md lists them with what they are for; each is the variable of its name."""

    rate_limit_requests: int = 10
    rate_limit_window: float = 60.0
    rate_limit_calls: int = 600
    max_user_runs: int = 5
    max_user_streams: int = 100
    tokens_per_day: int = 0
    max_active_runs: int = 5000
    max_loop_lag_seconds: float = 1.0
    max_text_length: int = 100_000
    max_list_length: int = 1000
    max_message_attachments: int = 10
    max_page_size: int = 10_000
    max_json_depth: int = 100
    max_metadata_bytes: int = 64 * 1024
    max_connections: int = 10_000
    max_connection_streams: int = 10_000
    call_deadline_seconds: float = 30.0
    stream_deadline_seconds: float = 3600.0

    @classmethod
    def read(cls, env: Environment) -> LimitSettings:
        """Read the environment; `env.check()` tells what is wrong with it."""
        default = cls()

        def number(name: str, lowest: int, highest: int) -> int | None:
            found: int | None = env.int(name, getattr(default, name.lower()), validate=must_be.Range(lowest, highest))
            return found

        def seconds(name: str, lowest: float, highest: float) -> float | None:
            found: float | None = env.float(
                name, getattr(default, name.lower()), validate=must_be.Range(lowest, highest)
            )
            return found

        settings: dict[str, Any] = {
            "rate_limit_requests": number("RATE_LIMIT_REQUESTS", 0, 1_000_000),
            "rate_limit_window": seconds("RATE_LIMIT_WINDOW", 1, 86400),
            "rate_limit_calls": number("RATE_LIMIT_CALLS", 0, 10_000_000),
            "max_user_runs": number("MAX_USER_RUNS", 0, 1000),
            "max_user_streams": number("MAX_USER_STREAMS", 0, 1_000_000),
            "tokens_per_day": number("TOKENS_PER_DAY", 0, 2**53),
            "max_active_runs": number("MAX_ACTIVE_RUNS", 0, 1_000_000),
            "max_loop_lag_seconds": seconds("MAX_LOOP_LAG_SECONDS", 0, 60),
            "max_text_length": number("MAX_TEXT_LENGTH", 1, 2**30),
            "max_list_length": number("MAX_LIST_LENGTH", 1, 100_000),
            "max_message_attachments": number("MAX_MESSAGE_ATTACHMENTS", 0, 1000),
            "max_page_size": number("MAX_PAGE_SIZE", 1, 100_000),
            "max_json_depth": number("MAX_JSON_DEPTH", 1, 100),
            "max_metadata_bytes": number("MAX_METADATA_BYTES", 4096, 2**20),
            "max_connections": number("MAX_CONNECTIONS", 1, 1_000_000),
            "max_connection_streams": number("MAX_CONNECTION_STREAMS", 1, 1_000_000),
            "call_deadline_seconds": seconds("CALL_DEADLINE_SECONDS", 0.1, 3600),
            "stream_deadline_seconds": seconds("STREAM_DEADLINE_SECONDS", 1, 7 * 86400),
        }
        return cls(**settings)

    @property
    def seconds_per_run(self) -> float:
        """After how many seconds a user may start another run in the long term; 0 without a limit."""
        return self.rate_limit_window / self.rate_limit_requests if self.rate_limit_requests else 0.0

    @property
    def seconds_per_call(self) -> float:
        """The same of calls."""
        return self.rate_limit_window / self.rate_limit_calls if self.rate_limit_calls else 0.0


DEFAULT_LIMITS = LimitSettings()
