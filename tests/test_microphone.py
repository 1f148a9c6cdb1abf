"""The page's microphone: what it records, what it asks of the server, and what it says when it can't."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
WEB = ROOT / "clients" / "web"
needs_node = pytest.mark.skipif(
    shutil.which("node") is None, reason="runs the page's script, and Node is no requirement"
)


@cache
def report() -> dict[str, Any]:
    """What tests/microphone.mjs saw."""
    node = ["node", str(ROOT / "tests" / "microphone.mjs"), str(WEB / "microphone.js")]
    done = subprocess.run(node, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    seen: dict[str, Any] = json.loads(done.stdout)
    return seen


@needs_node
@pytest.mark.parametrize("case", ["good", "safari", "own"])
def test_what_was_said_becomes_text(case: str) -> None:
    seen = report()[case]
    assert seen["told"] == ["starting", "recording", "transcribing", "text: hello", "off"]
    types = {"good": "audio/webm;codecs=opus", "safari": "audio/mp4", "own": "audio/x-own"}
    assert (seen["types"], seen["sizes"], seen["isOn"]) == ([types[case]], [100_000], False)
    wanted = {"audioBitsPerSecond": 32_000, **({} if case == "own" else {"mimeType": types[case]})}
    assert seen["wanted"] == [wanted]


@needs_node
@pytest.mark.parametrize(
    ("case", "told"),
    [
        ("silent", "Nothing was understood. Speak closer to the microphone, and try again."),
        ("refused", "The transcription service is busy."),
        ("broken", "The microphone can't be used."),
        ("NotAllowedError", "The browser doesn't let this page use the microphone. Allow it for this address, then"),
        ("NotFoundError", "There is no microphone."),
        ("NotReadableError", "Another program is using the microphone."),
        ("OverconstrainedError", "The microphone can't be used."),
    ],
)
def test_what_goes_wrong_is_said_in_words_and_the_microphone_is_off(case: str, told: str) -> None:
    seen = report()[case]
    (error,) = (line for line in seen["told"] if line.startswith("error: "))
    assert told in error
    assert (seen["told"][-1], seen["isOn"]) == ("off", False)


@needs_node
@pytest.mark.parametrize("case", ["dropped", "twice"])
def test_what_is_dropped_is_not_sent(case: str) -> None:
    seen = report()[case]
    assert (seen["told"], seen["types"], seen["isOn"]) == (["starting", "recording", "off"], [], False)


@needs_node
def test_a_browser_that_cannot_record_is_known() -> None:
    assert report()["canRecord"] == [True, False]


@needs_node
@pytest.mark.parametrize("file", sorted(WEB.glob("*.js")), ids=lambda file: file.name)
def test_the_scripts_can_be_read(file: Path) -> None:
    node = ["node", "--input-type=module", "--check"]
    done = subprocess.run(node, input=file.read_text(), capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


def test_the_page_has_all_that_its_script_asks_for() -> None:
    """The microphone is hidden until it is known that somebody takes dictation."""
    page, script = (WEB / "index.html").read_text(), (WEB / "chat.js").read_text()
    ids = set(re.findall(r'id="([\w-]+)"', page))
    used = set(re.findall(r"page\.(\w+)", script)) | set(re.findall(r'page\["([\w-]+)"\]', script))
    assert used <= ids
    assert re.search(r'<button id="microphone" type="button" hidden>Dictate</button>', page)
    assert re.search(r"page\.microphone\.hidden = !health\?\.dictation;", script)
