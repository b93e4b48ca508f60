"""EXIF directories as raw bytes: changed in place where they can be, taken from TIFF files and given to them.

A block of EXIF is a small TIFF file: directories of tags, each tag with its type, its count and its value. Values are
never interpreted here but for the few numbers that describe the pixels, so maker notes, GPS and unknown tags stay as
they are; offsets inside a maker note stay valid as nothing moves (except into and out of TIFF files, where the
directories are those of the picture).
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

EXIF, GPS, INTEROPERABILITY = 0x8769, 0x8825, 0xA005
ORIENTATION = 0x0112
SHORT, LONG, RATIONAL, UNDEFINED, LONG8, IFD8 = 3, 4, 5, 7, 16, 18

_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
_POINTERS = {0: (EXIF, GPS), EXIF: (INTEROPERABILITY,)}

# Tags of a TIFF's first directory that describe the photograph; the others describe how its pixels are stored (or a
# map, layers, an old thumbnail), which is no longer true of a restored picture. 33723 is IPTC.
_DESCRIPTIVE = frozenset(
    {269, 270, 271, 272, 305, 306, 315, 316, 318, 319, 18246, 18249, 33432, 33723, 40091, 40092, 40093, 40094, 40095}
)
# Tags of an EXIF block that a TIFF writer sets itself, or that would point at pixels it does not have.
_STORAGE = frozenset(
    {*range(254, 260), 262, 263, 266, 273, 274, *range(277, 285), 288, 289, 296, 297, 301, 317, *range(320, 326), 330}
    | {338, 339, 340, 341, 342, *range(512, 522), 529, 530, 531, 532, 700, 34377, 34675, 37724}
)


@dataclass(frozen=True)
class Entry:
    """Where one tag lies: its code, type and count, the place of its entry, and of its value."""

    code: int
    kind: int
    count: int
    position: int
    start: int
    size: int


@dataclass(frozen=True)
class Tag:
    """One tag by its value: type, count and the bytes in the order of the block."""

    kind: int
    count: int
    value: bytes


@dataclass(frozen=True)
class Directory:
    """Tags by code, and the directories that a tag points at."""

    tags: dict[int, Tag] = field(default_factory=dict)
    children: dict[int, Directory] = field(default_factory=dict)


@dataclass(frozen=True)
class Layout:
    """How the numbers of a TIFF are stored: byte order "<" or ">", and 64-bit offsets or not."""

    order: Literal["<", ">"]
    big: bool = False

    def pack(self, kind: int, *values: int) -> bytes:
        """Return whole numbers as bytes of a type (SHORT, LONG, RATIONAL or LONG8)."""
        letter = {SHORT: "H", LONG: "I", RATIONAL: "I", LONG8: "Q", IFD8: "Q"}[kind]
        return struct.pack(f"{self.order}{len(values)}{letter}", *values)


def header(data: bytes | bytearray) -> tuple[Layout, int]:
    """Return the layout of a TIFF or EXIF block and where its first directory is; ValueError for neither."""
    order: Literal["<", ">"] = "<" if data[:2] == b"II" else ">"
    version = struct.unpack_from(order + "H", data, 2)[0] if len(data) >= 8 and data[:2] in (b"II", b"MM") else 0
    if version == 43 and len(data) >= 16:
        return Layout(order, big=True), struct.unpack_from(order + "Q", data, 8)[0]
    if version != 42:
        raise ValueError("expected a TIFF header, got other bytes; drop the block")
    return Layout(order), struct.unpack_from(order + "I", data, 4)[0]


def entries(data: bytes | bytearray, layout: Layout, offset: int) -> tuple[list[Entry], int]:
    """Return the entries of the directory at `offset`, and where the offset of the next directory stands.

    An entry with an unknown type, or whose value lies outside of the data, is left out.

    Raises:
        ValueError: the directory itself lies outside of the data.
    """
    count_format, step, room = ("Q", 20, 8) if layout.big else ("H", 12, 4)
    head = struct.calcsize(layout.order + count_format)
    if offset + head > len(data):
        raise ValueError(f"expected a directory at byte {offset}, got {len(data)} bytes; drop the block")
    (number,) = struct.unpack_from(layout.order + count_format, data, offset)
    after = offset + head + step * number
    if after + room > len(data):
        raise ValueError(f"expected {number} entries at byte {offset}, got {len(data)} bytes; drop the block")
    found = []
    for position in range(offset + head, after, step):
        code, kind, count = struct.unpack_from(layout.order + ("HHQ" if layout.big else "HHI"), data, position)
        size = _SIZES.get(kind, 0) * count
        start = position + step - room
        if size > room:
            (start,) = struct.unpack_from(layout.order + ("Q" if layout.big else "I"), data, start)
        if kind in _SIZES and start + size <= len(data):
            found.append(Entry(code, kind, count, position, start, size))
    return found, after


def _number(data: bytes | bytearray, layout: Layout, entry: Entry) -> int:
    """Return the value of an entry that holds one whole number, else -1."""
    letter = {SHORT: "H", LONG: "I", 13: "I", LONG8: "Q", IFD8: "Q"}.get(entry.kind)
    if letter is None or entry.count != 1:
        return -1
    return int(struct.unpack_from(layout.order + letter, data, entry.start)[0])


def _all_entries(data: bytes | bytearray) -> tuple[Layout, dict[int, list[Entry]], int]:
    """Return the layout, the entries of each directory by its pointer tag, and the place of the next offset."""
    layout, offset = header(data)
    first, following = entries(data, layout, offset)
    found = {0: first}
    for parent, pointers in _POINTERS.items():
        for entry in found.get(parent, []):
            if entry.code in pointers and entry.code not in found:
                try:
                    found[entry.code], _ = entries(data, layout, _number(data, layout, entry))
                except (ValueError, struct.error):
                    continue  # one directory is damaged, the others are not
    return layout, found, following


def orientation(data: bytes) -> int:
    """Return the EXIF orientation 1 ... 8 of a block or TIFF; 1 where it has none."""
    layout, found, _ = _all_entries(data)
    values = [_number(data, layout, entry) for entry in found[0] if entry.code == ORIENTATION]
    return values[0] if values and 1 <= values[0] <= 8 else 1


def resolution(data: bytes) -> tuple[float, float] | None:
    """Return the horizontal and vertical pixels an inch that a block or TIFF states; None where it states none."""
    layout, found, _ = _all_entries(data)
    stated = {entry.code: entry for entry in found[0]}
    unit = {2: 1.0, 3: 2.54}.get(_number(data, layout, stated[296]) if 296 in stated else 2)
    values = []
    for code in (282, 283):
        entry = stated.get(code)
        if unit is None or entry is None or (entry.kind, entry.count) != (RATIONAL, 1):
            return None
        top, bottom = struct.unpack_from(layout.order + "II", data, entry.start)
        if top == 0 or bottom == 0:
            return None
        values.append(unit * top / bottom)
    return values[0], values[1]


def _set_number(data: bytearray, layout: Layout, entry: Entry, value: int) -> None:
    """Write one whole number into an entry; a SHORT becomes a LONG, as both fit into the entry."""
    if entry.count == 1 and entry.kind in (SHORT, LONG):
        struct.pack_into(layout.order + "HI", data, entry.position + 2, LONG, 1)
        if value < 65536 and entry.kind == SHORT:
            struct.pack_into(layout.order + "H", data, entry.position + 2, SHORT)
            struct.pack_into(layout.order + "HH", data, entry.start, value, 0)
        else:
            struct.pack_into(layout.order + "I", data, entry.start, value)


def upright(block: bytes) -> bytes:
    """Return a block of EXIF whose orientation is 1 and whose thumbnail, which shows the old picture, is gone.

    Raises:
        ValueError: not a block of EXIF.
    """
    data = bytearray(block)
    layout, found, following = _all_entries(data)
    for entry in found[0]:
        if entry.code == ORIENTATION:
            _set_number(data, layout, entry, 1)
    (second,) = struct.unpack_from(layout.order + "I", data, following)
    struct.pack_into(layout.order + "I", data, following, 0)
    try:
        thumbnail = {entry.code: _number(data, layout, entry) for entry in entries(data, layout, second)[0]}
    except ValueError:
        return bytes(data)
    start, end = thumbnail.get(0x0201, 0), thumbnail.get(0x0201, 0) + thumbnail.get(0x0202, 0)
    # Bytes that another tag uses are left alone: the offsets of a damaged block may point anywhere.
    used = [(entry.start, entry.start + entry.size) for part in found.values() for entry in part]
    used += [(entry.position, entry.position + 12) for part in found.values() for entry in part]
    if 8 <= start < end <= len(data) and all(end <= low or high <= start for low, high in used):
        if end == len(data):
            del data[start:]
        else:
            data[start:end] = bytes(end - start)
    return bytes(data)


def resized(block: bytes, width: int, height: int) -> bytes:
    """Return a block of EXIF in which the tags that state the size of the picture, where present, state this one."""
    data = bytearray(block)
    layout, found, _ = _all_entries(data)
    stated = {(0, 0x0100): width, (0, 0x0101): height, (EXIF, 0xA002): width, (EXIF, 0xA003): height}
    for name, part in found.items():
        for entry in part:
            if (name, entry.code) in stated:
                _set_number(data, layout, entry, stated[name, entry.code])
    return bytes(data)


def without_orientation(block: bytes) -> bytes:
    """Return a block of EXIF without the orientation tag (which then counts as 1); all other bytes keep their place."""
    data = bytearray(block)
    layout, found, following = _all_entries(data)
    for entry in found[0]:
        if entry.code == ORIENTATION:
            _, offset = header(data)
            (number,) = struct.unpack_from(layout.order + "H", data, offset)
            data[entry.position : following + 4 - 12] = data[entry.position + 12 : following + 4]
            struct.pack_into(layout.order + "H", data, offset, number - 1)
            break
    return bytes(data)


def _tree(data: bytes, layout: Layout, found: dict[int, list[Entry]], wanted: Callable[[int], bool]) -> Directory:
    """Return the first directory and those below it by value.

    Args:
        data: of a block or TIFF.
        layout: of the data.
        found: the entries of each directory.
        wanted: tells by its code whether a tag of the first directory is taken; the others are taken whole.

    Raises:
        ValueError: values that overlap so that copies of them would be larger than the data.
    """
    taken = {
        name: [
            entry
            for entry in part
            if entry.kind not in (13, LONG8, 17, IFD8)
            and entry.code not in _POINTERS.get(name, ())
            and (name != 0 or wanted(entry.code))
        ]
        for name, part in found.items()
    }
    size = sum(entry.size for part in taken.values() for entry in part)
    if size > len(data):
        raise ValueError(f"expected tags within {len(data)} bytes, got {size} bytes of them; drop the block")

    def directory(name: int) -> Directory:
        children = {code: directory(code) for code in _POINTERS.get(name, ()) if code in taken}
        tags = {
            entry.code: Tag(entry.kind, entry.count, bytes(data[entry.start : entry.start + entry.size]))
            for entry in taken[name]
        }
        return Directory(tags, children)

    return directory(0)


def serialize(directory: Directory, at: int, layout: Layout) -> bytes:
    """Return a directory, its values and those below it as bytes that stand at byte `at` (even) of a file."""
    count_format, step, room = ("Q", 20, 8) if layout.big else ("H", 12, 4)
    codes = sorted({*directory.tags, *directory.children})
    table = bytearray(struct.pack(layout.order + count_format, len(codes)))
    values = bytearray()  # which grows without being copied
    after = at + len(table) + step * len(codes) + room
    for code in codes:
        values += bytes(len(values) % 2)
        child = directory.children.get(code)
        if child is not None:
            kind, count, value = IFD8 if layout.big else LONG, 1, b""
            place = after + len(values)
            values += serialize(child, place, layout)
        else:
            tag = directory.tags[code]
            kind, count, value = tag.kind, tag.count, tag.value
            place = after + len(values)
            values += value if len(value) > room else b""
        table += struct.pack(layout.order + ("HHQ" if layout.big else "HHI"), code, kind, count)
        inline = child is None and len(value) <= room
        table += value.ljust(room, b"\0") if inline else layout.pack(LONG8 if layout.big else LONG, place)
    return bytes(table + bytes(room) + values)


def from_tiff(data: bytes) -> tuple[bytes | None, tuple[int, ...]]:
    """Return the photograph's tags of a TIFF file as a block of EXIF, and the codes of its other, non-storage tags.

    Raises:
        ValueError: not a TIFF file, or a damaged one.
    """
    layout, found, _ = _all_entries(data)
    kept = _tree(data, layout, found, lambda code: code in _DESCRIPTIVE)
    others = tuple(sorted({entry.code for entry in found[0]} - _DESCRIPTIVE - _STORAGE - {*_POINTERS[0]}))
    if not kept.tags and not kept.children:
        return None, others
    classic = Layout(layout.order)
    start = (b"II" if layout.order == "<" else b"MM") + classic.pack(SHORT, 42) + classic.pack(LONG, 8)
    return start + serialize(kept, 8, classic), others


def for_tiff(block: bytes) -> tuple[Layout, Directory]:
    """Return a block of EXIF as tags that a TIFF file can hold beside those of its pixels, and their byte order.

    Raises:
        ValueError: not a block of EXIF, or a damaged one.
    """
    layout, found, _ = _all_entries(block)
    return layout, _tree(block, layout, found, lambda code: code not in _STORAGE)


def set_xmp(xmp: bytes, values: dict[str, int]) -> bytes:
    """Return XMP in which the named numbers, where present as attribute or element, have new values."""
    for name, value in values.items():
        key, number = re.escape(name.encode()), str(value).encode()
        xmp = re.sub(rb"(\s" + key + rb"\s*=\s*[\"'])[^\"'<>]*", rb"\g<1>" + number, xmp)
        xmp = re.sub(rb"(<" + key + rb"\s*>)[^<]*", rb"\g<1>" + number, xmp)
    return xmp
