"""What the codec costs an event: `python -m tests.load.bench_codec`. It prints and never fails."""

from __future__ import annotations

import json
import statistics
import timeit
from collections.abc import Callable
from typing import Any

from chatkit_grpc import codec, text_delta
from chatkit_grpc.v1.event_pb2 import ThreadStreamEvent

REPEATS = 9
TEXT_DELTA_BUDGET, EVENT_BUDGET = 3.0, 60.0


def microseconds(action: Callable[[], Any]) -> float:
    """What an action takes: the median of several rounds of about 50 ms each."""
    timer = timeit.Timer(action)
    number, took = timer.autorange()
    number = max(1, round(number * 0.05 / took))
    return statistics.median(timer.repeat(REPEATS, number)) / number * 1e6


def text_delta_value(delta: str) -> dict[str, Any]:
    """A token's event as parsed JSON."""
    update = {"type": "assistant_message.content_part.text_delta", "content_index": 0, "delta": delta}
    return {"type": "thread.item.updated", "item_id": "msg_0192f0c1d2e3", "update": update}


def kibibyte_value() -> dict[str, Any]:
    """An assistant's message with its sources, about 1 KiB of JSON."""
    base = {"id": "msg_0192f0c1d2e3", "thread_id": "thr_0192f0c1d2e3", "created_at": "2026-01-31T12:00:00.123456Z"}
    source = {"type": "url", "title": "A title", "url": "https://example.com/a/page", "group": "g"}
    annotations = [{"type": "annotation", "source": source, "index": index} for index in (10, 20, 30)]
    part: dict[str, Any] = {"type": "output_text", "text": "", "annotations": annotations}
    value = {"type": "thread.item.done", "item": {**base, "type": "assistant_message", "content": [part]}}
    part["text"] = "word " * ((1024 - len(json.dumps(value, separators=(",", ":")))) // 5)
    return value


def report(name: str, budget: float | None, action: Callable[[], Any]) -> None:
    """Measure an action and print a line about it."""
    took = microseconds(action)
    verdict = "" if budget is None else f"   budget {budget:4.0f}   {'ok' if took <= budget else 'TOO SLOW'}"
    print(f"{name:42} {took:8.2f} µs{verdict}")


def main() -> None:
    """Measure and print."""
    delta = codec.decode(ThreadStreamEvent, text_delta_value(" word"))
    value = kibibyte_value()
    event = codec.decode(ThreadStreamEvent, value)
    text, binary = codec.encode(event), event.SerializeToString()
    report("text delta, message to JSON", TEXT_DELTA_BUDGET, lambda: text_delta.encode_event(delta))
    report(
        "text delta, SDK's event to message",
        TEXT_DELTA_BUDGET,
        lambda: text_delta.write_text_delta(ThreadStreamEvent(), "msg_0192f0c1d2e3", 0, " word"),
    )
    report("text delta, by the general encoder", None, lambda: codec.encode(delta))
    report("text delta, by the general decoder", None, lambda: codec.decode(ThreadStreamEvent, text_delta_value("w")))
    print(f"an event of {len(text.encode())} bytes of JSON, {len(binary)} bytes of protobuf:")
    report("event, message to JSON", EVENT_BUDGET, lambda: codec.encode(event))
    report("event, parsed JSON to message", EVENT_BUDGET, lambda: codec.decode(ThreadStreamEvent, value))
    report("event, JSON text to message", EVENT_BUDGET, lambda: codec.decode(ThreadStreamEvent, json.loads(text)))
    report("event, binary to message", None, lambda: ThreadStreamEvent.FromString(binary))


if __name__ == "__main__":
    main()
