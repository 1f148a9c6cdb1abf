"""Free-form JSON: widgets, action payloads, tool arguments. It travels as text, and what can't travel is named."""

from __future__ import annotations

import json
import math
import re
from typing import Any

NUL = "holds a NUL character, which can't be stored"
LONE_SURROGATE = "holds a lone surrogate, which is no valid text"
MAX_DEPTH = 100
"""How deep JSON may be nested; the SDK's own parser gives up at about twice that."""

_SURROGATE = re.compile("[\ud800-\udfff]")
_STRING = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)
_BRACKET = re.compile(r"[\[\]{}]")
_PLAIN_NAME = re.compile(r"[A-Za-z_]\w*")


def is_deeper(text: str, levels: int) -> bool:
    """Whether valid JSON is nested more deeply than so many levels, found out without parsing it."""
    if text.count("[") + text.count("{") <= levels:
        return False
    depth = 0
    for bracket in _BRACKET.findall(_STRING.sub("", text)):
        depth += 1 if bracket in "[{" else -1
        if depth > levels:
            return True
    return False


class Invalid(Exception):  # noqa: N818 # control flow inside the codec, which turns it into a ValidationError
    """Something is wrong with a value. The path to it grows while the walkers unwind."""

    def __init__(self, description: str) -> None:
        super().__init__(description)
        self.description = description
        self._steps: list[str | int] = []

    def at(self, step: str | int) -> Invalid:
        """Say which member or element the value is, from the inside out."""
        self._steps.append(step)
        return self

    @property
    def path(self) -> str:
        """Where the value is. Sample: "$.params.input.content[0].type"."""
        steps = [_step_text(step) for step in reversed(self._steps)]
        return "$" + "".join(steps if len(steps) <= 20 else [*steps[:10], "…", *steps[-3:]])


def _step_text(step: str | int) -> str:
    if isinstance(step, int):
        return f"[{step}]"
    return f".{step}" if _PLAIN_NAME.fullmatch(step) and len(step) <= 60 else f"[{shown(step)}]"


def shown(text: str) -> str:
    """Somebody else's text as an error may show it: short, and in ASCII, which a lone surrogate is not."""
    return json.dumps(text) if len(text) <= 60 else f"{json.dumps(text[:60])}…"


class _Object(dict[str, Any]):
    """An object with a member that was given twice."""

    duplicate: str


def loads(text: str | bytes) -> Any:
    """Parse JSON strictly: UTF-8, no NaN, no member twice, not nested too deeply. Raises Invalid."""
    found_duplicate = False

    def build(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        nonlocal found_duplicate
        members = dict(pairs)
        if len(members) == len(pairs):
            return members
        found_duplicate = True
        doubled = _Object(members)
        seen: set[str] = set()
        for name, _ in pairs:
            if name in seen:
                doubled.duplicate = name
                break
            seen.add(name)
        return doubled

    try:
        value = json.loads(
            text if isinstance(text, str) else text.decode("utf-8"),
            object_pairs_hook=build,
            parse_constant=_refuse_constant,
            parse_float=_finite,
        )
    except UnicodeDecodeError as error:
        raise Invalid(f"not UTF-8 at byte {error.start}") from None
    except json.JSONDecodeError as error:
        raise Invalid(f"not JSON: {error.msg} at line {error.lineno}, column {error.colno}") from None
    except RecursionError:
        raise Invalid(f"nested more than {MAX_DEPTH} levels deep") from None
    except ValueError:
        raise Invalid("not JSON: a number with more digits than can be read") from None
    brackets = text.count(b"[") + text.count(b"{") if isinstance(text, bytes) else text.count("[") + text.count("{")
    if found_duplicate or brackets > MAX_DEPTH:
        _inspect(value, MAX_DEPTH)
    return value


def _refuse_constant(name: str) -> Any:
    raise Invalid(f"not JSON: {name} is no JSON number")


def _finite(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise Invalid("not JSON: a number too large to be read")
    return number


def dumps(value: Any) -> str:
    """Parsed JSON as text: numbers and key order as they were, NaN and infinity as null as the SDK writes them."""
    if isinstance(value, float) and not math.isfinite(value):
        return "null"
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def to_text(value: Any, *, must_be_object: bool = False, may_hold_nul: bool = False) -> str:
    """Parsed JSON as the text that travels. Raises Invalid with the path of what can't."""
    if must_be_object and not isinstance(value, dict):
        raise Invalid(f"expected an object, got {kind_of(value)}")
    text = dumps(value)
    is_suspicious = _SURROGATE.search(text) or text.count("[") + text.count("{") > MAX_DEPTH
    if is_suspicious or ("\\u0000" in text and not may_hold_nul):
        _inspect(value, MAX_DEPTH, may_hold_nul=may_hold_nul)
    return text


def check_json(text: str, *, must_be_object: bool) -> None:
    """Check text that is to be spliced into JSON. Raises Invalid."""
    to_text(loads(text), must_be_object=must_be_object)


def check_text(text: str, *, may_hold_nul: bool = False) -> None:
    """Check ordinary text. Raises Invalid."""
    if "\0" in text and not may_hold_nul:
        raise Invalid(NUL)
    if _SURROGATE.search(text):
        raise Invalid(LONE_SURROGATE)


def kind_of(value: Any) -> str:
    """What a parsed value is, in JSON's words. Sample: "a list"."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    kinds = {str: "a string", int: "a number", float: "a number", list: "a list", dict: "an object"}
    return kinds.get(type(value), "an object")


def _inspect(value: Any, depth: int, *, may_hold_nul: bool = False) -> None:
    """Find what is wrong with a value that looks suspicious, and where. Raises Invalid."""
    if isinstance(value, str):
        check_text(value, may_hold_nul=may_hold_nul)
    if not isinstance(value, dict | list):
        return
    if not depth:
        raise Invalid(f"nested more than {MAX_DEPTH} levels deep")
    if isinstance(value, _Object):
        raise Invalid("given twice").at(value.duplicate)
    for step, member in value.items() if isinstance(value, dict) else enumerate(value):
        try:
            if isinstance(step, str):
                check_text(step, may_hold_nul=may_hold_nul)
            _inspect(member, depth - 1, may_hold_nul=may_hold_nul)
        except Invalid as error:
            raise error.at(step) from None
