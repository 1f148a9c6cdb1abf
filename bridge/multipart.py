"""The file of a form (multipart/form-data), in its field "file", while it comes; nothing else of the form is kept."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from urllib.parse import unquote_to_bytes

from chatkit_grpc.errors import ValidationError
from python_multipart.exceptions import MultipartParseError
from python_multipart.multipart import MultipartParser, parse_options_header

_FIELD = b"file"
_MOST_HEAD_BYTES = 8 * 1024
_MOST_BYTES_BEFORE = 512 * 1024
"""Of other fields, before the file."""


@dataclass(frozen=True, slots=True)
class FormFile:
    """A file of a form, whose bytes are still to come."""

    name: str
    mime_type: str
    chunks: AsyncGenerator[bytes, None]


async def file_of(content_type: str, body: AsyncGenerator[bytes, None]) -> FormFile:
    """The field "file" of a form, as soon as its head is there. Raises ValidationError, as its chunks may later."""
    kind, options = parse_options_header(content_type)
    if kind != b"multipart/form-data" or not options.get(b"boundary"):
        raise ValidationError.at("Content-Type", "expected multipart/form-data with a boundary")
    form = _Form(options[b"boundary"])
    size = 0
    async for chunk in body:
        form.feed(chunk)
        if form.is_begun:
            return FormFile(form.name, form.mime_type, _chunks(form, body))
        size += len(chunk)
        if size > _MOST_BYTES_BEFORE:
            raise ValidationError.at("$.file", f"expected it within the first {_MOST_BYTES_BEFORE:,} bytes of the form")
    raise ValidationError.at("$.file", "expected a file in the field `file`, the form has none")


async def _chunks(form: _Form, body: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
    async with aclosing(body):
        while True:
            while form.chunks:
                yield form.chunks.popleft()
            if form.is_complete:
                return
            try:
                form.feed(await anext(body))
            except StopAsyncIteration:
                raise ValidationError.at("$.file", "expected the end of the file, the form ended before") from None


class _Form:
    """What the parser has found so far: the first field "file" and what has come of it."""

    def __init__(self, boundary: bytes) -> None:
        self.name = ""
        self.mime_type = ""
        self.chunks: deque[bytes] = deque()
        self.is_begun = False
        self.is_complete = False
        self._head_bytes = 0
        self._headers: dict[bytes, bytes] = {}
        self._header = self._value = b""
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._begin_part,
                "on_header_field": self._add_to_header,
                "on_header_value": self._add_to_value,
                "on_header_end": self._end_header,
                "on_headers_finished": self._end_head,
                "on_part_data": self._add_data,
                "on_part_end": self._end_part,
            },
        )

    def feed(self, chunk: bytes) -> None:
        """Go on with the next bytes. Raises ValidationError for what is no form."""
        try:
            self._parser.write(chunk)
        except MultipartParseError:
            pass
        else:
            return
        raise ValidationError.at("$", "expected multipart/form-data as its boundary says")

    @property
    def _is_in_file(self) -> bool:
        return self.is_begun and not self.is_complete

    def _begin_part(self) -> None:
        self._headers.clear()
        self._head_bytes = 0

    def _add_to_header(self, data: bytes, start: int, end: int) -> None:
        self._count_head(end - start)
        self._header += data[start:end]

    def _add_to_value(self, data: bytes, start: int, end: int) -> None:
        self._count_head(end - start)
        self._value += data[start:end]

    def _count_head(self, more: int) -> None:
        self._head_bytes += more
        if self._head_bytes > _MOST_HEAD_BYTES:
            raise ValidationError.at("$", f"expected at most {_MOST_HEAD_BYTES} bytes of headers of a field")

    def _end_header(self) -> None:
        self._headers[self._header.lower()] = self._value
        self._header = self._value = b""

    def _end_head(self) -> None:
        disposition, options = parse_options_header(self._headers.get(b"content-disposition", b""))
        if self.is_begun or disposition != b"form-data" or options.get(b"name") != _FIELD:
            return
        self.is_begun = True
        # Browsers write quotes and ends of lines as percent signs and digits, and other characters as they are.
        self.name = unquote_to_bytes(options.get(b"filename", b"")).decode(errors="replace") or "file"
        self.mime_type = self._headers.get(b"content-type", b"").decode("latin-1")

    def _add_data(self, data: bytes, start: int, end: int) -> None:
        if self._is_in_file:
            self.chunks.append(data[start:end])

    def _end_part(self) -> None:
        self.is_complete = self.is_begun
