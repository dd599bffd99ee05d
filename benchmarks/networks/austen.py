"""Emma, by Jane Austen, out of the Debian package r-cran-janeaustenr.

    apt-get download r-cran-janeaustenr && dpkg-deb -x r-cran-janeaustenr_*.deb FOLDER

The novel lies there in R's own format: a database of compressed values, each a vector of lines. It is read without R.
"""

from __future__ import annotations

import re
import struct
import zlib
from pathlib import Path
from typing import Final

_PLACE: Final = "usr/lib/R/site-library/janeaustenr"
_VECTOR: Final = struct.pack(">i", 16)  # R's type of a vector of strings
_LINE: Final = re.compile(rb"\x00\x04\x00\x09(.{4})", re.DOTALL)  # a string of plain characters, and its length
_FIRST: Final = "EMMA"


def emma(folder: Path) -> str:
    """The text, line by line.

    Raises:
        SystemExit: the package was not unpacked there.
    """
    found = sorted((folder / _PLACE / "data").glob("*.rdb"))
    if not found:
        raise SystemExit(f"no {_PLACE} in {folder}: apt-get download r-cran-janeaustenr && dpkg-deb -x its .deb there")
    novels = (lines for path in found for lines in _vectors(path.read_bytes()))
    return "\n".join(next(lines for lines in novels if lines and lines[0].strip() == _FIRST))


def _vectors(database: bytes) -> list[list[str]]:
    """Every vector of strings: values stand one after another, a length before each."""
    vectors, start = [], 0
    while start < len(database):
        decoder = zlib.decompressobj()
        body = decoder.decompress(database[start + 4 :])
        vectors.append(_lines(body))
        start = len(database) - len(decoder.unused_data)
    return vectors


def _lines(body: bytes) -> list[str]:
    lines, place = [], 0
    while (match := _LINE.search(body, place)) is not None:
        (length,) = struct.unpack(">i", match[1])
        place = match.end() + max(length, 0)
        lines.append(body[match.end() : place].decode("utf-8", "replace"))
    return lines
