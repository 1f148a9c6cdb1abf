"""Small versions of pictures, made where a picture can't take more than a bounded memory to unpack."""

from __future__ import annotations

import asyncio
import io
from concurrent.futures import ThreadPoolExecutor
from typing import IO

from chatkit_grpc.errors import ValidationError
from PIL import Image, ImageOps

from server.attachments import refusals

MIME_TYPE = "image/webp"
_SIDE = 512
"""Pixels of the longer side of a preview."""
_MOST_PIXELS = 64_000_000
"""At most 256 MB of memory, of one picture at a time."""
_FORMATS = ("PNG", "JPEG", "GIF", "WEBP")


class Previews:
    """Makes previews, one at a time, in a thread that nothing else waits for. Close it."""

    def __init__(self) -> None:
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="previews")

    async def make(self, picture: IO[bytes]) -> bytes:
        """The preview of a picture, as WebP. Raises ValidationError for one that can't be read, or is too large."""
        return await asyncio.get_running_loop().run_in_executor(self._executor, _preview_of, picture)

    def close(self) -> None:
        """Let what is being made come to its end, and make no more."""
        self._executor.shutdown(wait=False, cancel_futures=True)


def _preview_of(picture: IO[bytes]) -> bytes:
    picture.seek(0)
    try:
        return _shrink(picture)
    except ValidationError:
        raise
    except (Exception, MemoryError):  # noqa: BLE001 # whatever a damaged file does to Pillow, it is the file's fault
        problem = refusals.unreadable("can't be read")
    # Not inside the except block: what Pillow says may quote the file.
    raise problem


def _shrink(picture: IO[bytes]) -> bytes:
    with Image.open(picture, formats=_FORMATS) as opened:
        pixels = opened.width * opened.height
        if pixels > _MOST_PIXELS:
            raise refusals.unreadable(f"has too many pixels: expected at most {_MOST_PIXELS:,}, got {pixels:,}")
        # A large JPEG is made small while it is read.
        opened.draft("RGB", (_SIDE, _SIDE))
        opened.thumbnail((_SIDE, _SIDE))
        turned = ImageOps.exif_transpose(opened)
    has_alpha = "A" in turned.getbands() or "transparency" in turned.info
    made = io.BytesIO()
    turned.convert("RGBA" if has_alpha else "RGB").save(made, "WEBP", quality=80)
    return made.getvalue()
