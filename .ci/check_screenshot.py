"""Checks two screenshots of a trace's page: drawn, in both writers' colours, light and dark.

Arguments: the picture on a light ground, the picture on a dark one. Standard library only.
"""

from __future__ import annotations

import struct
import sys
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

MIN_BYTES = 8_000
MIN_COLOURS = 30
MIN_PIXELS_OF_A_WRITER = 50
# Red, green, blue of the small and the large model, as in STYLE of trace/html.py.
WRITERS = {"light": ((0x00, 0x57, 0x8A), (0xA8, 0x3F, 0x00))}
WRITERS["dark"] = ((0x7C, 0xC4, 0xF2), (0xFF, 0xB0, 0x67))

Colour = tuple[int, ...]


def chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Kind and content of each chunk of a PNG file."""
    position = 8
    while position < len(data):
        (length,) = struct.unpack_from(">I", data, position)
        yield data[position + 4 : position + 8], data[position + 8 : position + 8 + length]
        position += length + 12


def paeth(left: int, above: int, corner: int) -> int:
    """The predictor of PNG's filter 4: whichever is nearest to left + above - corner."""
    distances = [abs(above - corner), abs(left - corner), abs(left + above - 2 * corner)]
    return (left, above, corner)[distances.index(min(distances))]


def unfilter(kind: int, line: bytearray, above: bytearray, width: int) -> None:
    """Undoes a line's filter in place; ``width`` is the bytes of a pixel."""
    for i in range(len(line)):
        left = line[i - width] if i >= width else 0
        corner = above[i - width] if i >= width else 0
        guess = (0, left, above[i], (left + above[i]) // 2, paeth(left, above[i], corner))[kind]
        line[i] = (line[i] + guess) & 0xFF


def colours(data: bytes) -> Counter[Colour]:
    """How often each colour occurs.

    Raises:
        ValueError: It is no PNG of 8 bits a channel without interlacing.
    """
    if data[:8] != b"\x89PNG\r\n\x1a\n":
        raise ValueError("no PNG file")
    parts = list(chunks(data))
    size = struct.unpack(">IIBBBBB", parts[0][1])
    columns, rows, depth, kind, interlaced = *size[:4], size[6]
    if depth != 8 or kind not in (2, 6) or interlaced:
        raise ValueError(f"unexpected kind of PNG: {size}")
    width = 3 if kind == 2 else 4
    pixels = zlib.decompress(b"".join(content for name, content in parts if name == b"IDAT"))
    count: Counter[Colour] = Counter()
    above = bytearray(columns * width)
    for row in range(rows):
        start = row * (columns * width + 1)
        line = bytearray(pixels[start + 1 : start + 1 + columns * width])
        if pixels[start]:
            unfilter(pixels[start], line, above, width)
        count.update(zip(line[0::width], line[1::width], line[2::width], strict=True))
        above = line
    return count


def check(path: Path, theme: str) -> None:
    """Checks one picture.

    Raises:
        ValueError: It is too small, or lacks colours.
    """
    data = path.read_bytes()
    count = colours(data)
    if len(data) < MIN_BYTES or len(count) < MIN_COLOURS:
        raise ValueError(f"{path}: only {len(data)} bytes, {len(count)} colours: nothing drawn?")
    ((ground, _),) = count.most_common(1)
    if (sum(ground) > 3 * 128) != (theme == "light"):
        raise ValueError(f"{path}: the ground {ground} is not {theme}")
    for colour in WRITERS[theme]:
        if count[colour] < MIN_PIXELS_OF_A_WRITER:
            raise ValueError(f"{path}: {count[colour]} pixels of {colour}: a writer is missing")
    print(f"{path}: {len(data)} bytes, {len(count)} colours, ground {ground}")


def main() -> int:
    """Checks the pictures named on the command line."""
    for path, theme in zip(sys.argv[1:], ("light", "dark"), strict=True):
        check(Path(path), theme)
    return 0


if __name__ == "__main__":
    sys.exit(main())
