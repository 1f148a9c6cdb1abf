"""What a file is, told from its first bytes as browsers tell it (https://mimesniff.spec.whatwg.org), not from its name.

A table of our own: puremagic, the library for this, takes any text that begins with "BM" for a bitmap, and any zip for
a Word document.
"""

from __future__ import annotations

import codecs
import re

from server.attachments import refusals

HEAD_BYTES = 4096
"""How many of a file's first bytes are looked at."""
UNKNOWN = "application/octet-stream"
PICTURES = frozenset({"image/png", "image/jpeg", "image/gif", "image/webp"})
"""What there are previews of."""

# A dot stands for any byte.
_SIGNATURES: tuple[tuple[str, re.Pattern[bytes]], ...] = tuple(
    (name, re.compile(pattern, re.DOTALL))
    for name, pattern in (
        ("image/png", rb"\x89PNG\r\n\x1a\n"),
        ("image/jpeg", rb"\xff\xd8\xff"),
        ("image/gif", rb"GIF8[79]a"),
        ("image/webp", rb"RIFF....WEBPVP"),
        ("image/bmp", rb"BM....\x00\x00\x00\x00"),
        ("image/tiff", rb"II\*\x00|MM\x00\*"),
        ("image/x-icon", rb"\x00\x00[\x01\x02]\x00"),
        ("image/avif", rb"....ftypavi[fs]"),
        ("image/heic", rb"....ftyp(?:hei[cxms]|hev[cx]|mif1|msf1)"),
        ("application/pdf", rb"%PDF-"),
        ("application/postscript", rb"%!PS-Adobe-"),
        ("application/zip", rb"PK\x03\x04|PK\x05\x06\x00\x00"),
        ("application/gzip", rb"\x1f\x8b\x08"),
        ("application/x-7z-compressed", rb"7z\xbc\xaf\x27\x1c"),
        ("application/vnd.rar", rb"Rar!\x1a\x07"),
        ("application/x-ole-storage", rb"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"),
        ("application/vnd.microsoft.portable-executable", rb"MZ.{58}(?:.\x00\x00\x00|.[\x01-\x0f]\x00\x00)"),
        ("application/x-elf", rb"\x7fELF"),
        ("audio/mpeg", rb"ID3[\x02-\x04]\x00|\xff[\xfb\xf3\xf2]"),
        ("audio/wav", rb"RIFF....WAVE"),
        ("application/ogg", rb"OggS\x00"),
        ("video/webm", rb"\x1a\x45\xdf\xa3"),
        ("video/mp4", rb"....ftyp"),
    )
)
_KNOWN = frozenset(name for name, _ in _SIGNATURES)
# Bytes that stand in no text.
_BINARY = re.compile(rb"[\x00-\x08\x0b\x0e-\x1a\x1c-\x1f]")
_UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_TEXTS = re.compile(
    r"text/.+|.+\+(?:json|xml|yaml)|application/(?:json|x-ndjson|xml|x-yaml|yaml|toml|sql|javascript|x-sh|rtf)"
)
_ZIPS = re.compile(
    r"application/(?:vnd\.openxmlformats-.+|vnd\.oasis\.opendocument\..+|epub\+zip|java-archive|x-zip-compressed)"
)
_OLES = frozenset({"application/msword", "application/vnd.ms-excel", "application/vnd.ms-powerpoint"})
_OTHER_NAMES = {
    "image/jpg": "image/jpeg",
    "image/pjpeg": "image/jpeg",
    "image/x-png": "image/png",
    "image/x-ms-bmp": "image/bmp",
    "application/x-pdf": "application/pdf",
    "audio/mp3": "audio/mpeg",
    "audio/ogg": "application/ogg",
    "audio/x-wav": "audio/wav",
    "audio/mp4": "video/mp4",
    "audio/webm": "video/webm",
}
_FORM = re.compile(r"[a-z0-9][a-z0-9.+-]{0,80}/[a-z0-9][a-z0-9.+-]{0,80}")


def bare(mime_type: str) -> str:
    """A MIME type without parameters, in lower case; UNKNOWN for what is none."""
    name = mime_type.partition(";")[0].strip().lower()
    return name if _FORM.fullmatch(name) else UNKNOWN


def type_of(head: bytes) -> str:
    """What a file is by its first HEAD_BYTES. Text of any kind is "text/plain"; UNKNOWN for what can't be told."""
    for name, signature in _SIGNATURES:
        if signature.match(head):
            return name
    return "text/plain" if _is_text(head) else UNKNOWN


def agreed_type(declared: str, head: bytes) -> str:
    """The type of a file, where what is said and what is found can be the same. Raises ValidationError.

    Who says nothing gets what is found. What has no signature in the table is believed: whether it is taken is for
    ATTACHMENT_TYPES to say.
    """
    declared, found = bare(declared), type_of(head)
    if declared == UNKNOWN:
        return found
    normal = _OTHER_NAMES.get(declared, declared)
    if found == normal:
        return normal if normal in PICTURES else declared
    is_same = (
        (found == "text/plain" and _TEXTS.fullmatch(normal))
        or (found == "application/zip" and _ZIPS.fullmatch(normal))
        or (found == "application/x-ole-storage" and normal in _OLES)
        or (found == UNKNOWN and normal not in _KNOWN and not _TEXTS.fullmatch(normal))
    )
    if not is_same:
        raise refusals.type_mismatch(declared, found)
    return declared


def check_allowed(mime_type: str, allowed: tuple[str, ...]) -> None:
    """Raise ValidationError for a type that isn't among those allowed. Samples of these: "image/png", "text/*"."""
    family = f"{mime_type.partition('/')[0]}/*"
    if not {mime_type, family, "*/*"} & set(allowed):
        raise refusals.type_not_allowed(mime_type, allowed)


def check_announced(declared: str, allowed: tuple[str, ...]) -> str:
    """The type that is announced, where it is said and may be one of those allowed. Raises ValidationError."""
    name = bare(declared)
    name = _OTHER_NAMES.get(name, name) if _OTHER_NAMES.get(name) in PICTURES else name
    if name != UNKNOWN:
        check_allowed(name, allowed)
    return name


def is_text(mime_type: str) -> bool:
    """Whether files of a type are text."""
    return _TEXTS.fullmatch(mime_type) is not None


def _is_text(head: bytes) -> bool:
    if head.startswith(_UTF_16):
        return True
    if _BINARY.search(head):
        return False
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        decoder.decode(head)  # a character may be cut at the end
    except UnicodeDecodeError:
        return False
    return True
