"""Images made to cost their reader time or memory: small files that announce, unpack to or point at very much.

Each generator yields name and bytes. Hostile ones come from `hostile_images`, odd ones that are within the limits
from `odd_images`.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator

from PIL import Image

from tests.store.pictures import encode, noise, png_chunk, png_file, sample_files

FILES = sample_files()
MIB = 1 << 20

SIDES = [
    (20_000, 20_000),
    (9_434, 9_434),
    (8_193, 8_192),
    (65_535, 65_535),
    (65_536, 1),
    (1, 65_536),
    (16_383, 16_383),
    (0, 10),
    (10, 0),
    (2**31 - 1, 2**31 - 1),
    (2**31, 1),
    (2**32 - 1, 2),
]
"""Announced in a header, each above the limits or nothing at all; 88 and 89 megapixels among them."""


def hostile_images() -> Iterator[tuple[str, bytes]]:
    for width, height in SIDES:
        yield from (
            (f"{name} of {width} x {height}", data) for name, data in announced(width, height) if data is not None
        )
    for part in (flat_pngs, pngs, jpegs, webps, gifs, bmps, tiffs, cut):
        yield from part()


def announced(width: int, height: int) -> Iterator[tuple[str, bytes | None]]:
    """A file of every format with that size in its header, None where it has no room for it."""
    small = max(width, height) < 1 << 16
    whole = small and min(width, height) > 0  # A GIF of no size takes that of its picture.
    yield "PNG", png_file(width, height, 8, 2, bytes(100))
    yield "PNG 1 bit", png_file(width, height, 1, 0, bytes(100))
    yield "JPEG", _patched(FILES["JPEG"], b"\xff\xc0", 5, ">HH", height, width) if small else None
    progressive = encode(Image.new("RGB", (16, 16)), "JPEG", progressive=True)
    yield "JPEG progressive", _patched(progressive, b"\xff\xc2", 5, ">HH", height, width) if small else None
    yield "GIF", _at(FILES["GIF"], 6, "<HH", width, height) if whole else None
    yield "GIF frame", _patched(FILES["GIF"], b",\0\0\0\0\x18\0", 5, "<HH", width, height) if whole else None
    yield "BMP", _at(FILES["BMP"], 18, "<LL", width, height) if max(width, height) < 1 << 31 else None
    yield "BMP upside down", _at(FILES["BMP"], 18, "<Ll", width, -height) if 0 < max(width, height) < 1 << 31 else None
    yield "TIFF", tiff([(256, 4, 1, width), (257, 4, 1, height), *_REST])
    yield "BigTIFF", tiff([(256, 4, 1, width), (257, 4, 1, height), *_REST], big=True)
    if min(width, height) > 0 and max(width, height) <= 1 << 24:
        yield "WEBP", webp(vp8x(width, height), FILES["WEBP"][12:])
    if min(width, height) > 0 and max(width, height) <= 1 << 14:
        yield (
            "WEBP lossless",
            webp(chunk(b"VP8L", b"\x2f" + struct.pack("<L", height - 1 << 14 | width - 1) + bytes(9))),
        )


def flat_pngs() -> Iterator[tuple[str, bytes]]:
    """Whole files of one colour: a few kilobytes that any decoder would unpack to hundreds of megabytes."""
    yield "11 KB for 88 megapixels", png_file(9_400, 9_400, 1, 0, bytes((9_400 // 8 + 1) * 9_400))
    yield "a row of a million", png_file(1_000_000, 1, 8, 2, bytes(3_000_001))
    yield "a column of a million", png_file(1, 1_000_000, 1, 0, bytes(2_000_000))
    yield "90 megapixels", png_file(30_000, 3_000, 1, 0, bytes((30_000 // 8 + 1) * 3_000))
    for side in (2_000, 8_000):
        for depth, colour in ((8, 0), (8, 2), (8, 6), (16, 2), (16, 6), (8, 3), (1, 0)):
            palette = (png_chunk(b"PLTE", bytes(768)),) if colour == 3 else ()
            yield f"no rows for {side} x {side}, {depth} {colour}", png_file(side, side, depth, colour, b"", *palette)
            yield (
                f"one row for {side} x {side}, {depth} {colour}",
                png_file(side, side, depth, colour, bytes(1 + side * 8), *palette),
            )


def pngs() -> Iterator[tuple[str, bytes]]:
    png, megabyte, three = FILES["PNG"], zlib.compress(bytes(MIB)), zlib.compress(bytes(3 * MIB))
    for name, head in ((b"zTXt", b"key\0\0"), (b"iCCP", b"key\0\0"), (b"iTXt", b"key\0\1\0\0\0")):
        kind = name.decode()
        yield f"60 {kind} of a megabyte", inserted(png, png_chunk(name, head + megabyte) * 60)
        yield f"1000 {kind} of a megabyte", inserted(png, png_chunk(name, head + megabyte) * 1000)
        yield f"one {kind} of 3 megabytes", inserted(png, png_chunk(name, head + three))
        yield f"one {kind} of 3 megabytes after the pixels", png[:-12] + png_chunk(name, head + three) + png[-12:]
    profile = b"Raw profile type exif\0\0" + zlib.compress(b"\nexif\n   9\n" + b"0" * 5 * MIB)
    yield "a raw profile of 5 megabytes", inserted(png, png_chunk(b"zTXt", profile))
    yield "text of 3 megabytes", inserted(png, png_chunk(b"tEXt", b"key\0" + bytes(3 * MIB)))
    yield "XMP of 3 megabytes", inserted(png, png_chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + b" " * 3 * MIB))
    yield "EXIF of 3 megabytes", inserted(png, png_chunk(b"eXIf", b"II*\0\x08\0\0\0" + bytes(3 * MIB)))
    yield (
        "an orientation of 4 million numbers",
        inserted(png, png_chunk(b"eXIf", exif([(0x112, 3, 4 * MIB, 26)], 8 * MIB))),
    )
    yield "5000 empty chunks", inserted(png, png_chunk(b"teSt", b"") * 5_000)
    yield "60000 empty chunks", inserted(png, png_chunk(b"teSt", b"") * 60_000)
    yield "5000 empty texts", inserted(png, png_chunk(b"tEXt", b"k\0") * 5_000)
    yield "5000 empty IDAT", inserted(png, png_chunk(b"IDAT", b"") * 5_000)
    yield "5000 palettes", inserted(png, png_chunk(b"PLTE", b"abc") * 5_000)
    yield "a chunk of 4 gigabytes", png[:33] + b"\xff\xff\xff\xfftEXt" + png[33:]
    yield "a chunk of 2 gigabytes", png[:33] + b"\x7f\xff\xff\xfftEXt" + png[33:]


def jpegs() -> Iterator[tuple[str, bytes]]:
    jpeg = FILES["JPEG"]
    for name, segment in (("comments", b"\xff\xfe\0\2"), ("APP1", b"\xff\xe1\0\2"), ("tables", b"\xff\xdb\0\2")):
        for count in (6_000, 200_000):
            yield f"{count} empty {name}", jpeg[:-2] + segment * count + b"\xff\xd9"
            yield f"{count} empty {name} before the frame", jpeg[:2] + segment * count + jpeg[2:]
    progressive = encode(Image.new("RGB", (16, 16)), "JPEG", progressive=True)
    scan = progressive[progressive.rindex(b"\xff\xda") : -2]
    yield "1000 scans", progressive[:-2] + scan * 1_000 + b"\xff\xd9"
    huge = _patched(progressive, b"\xff\xc2", 5, ">HH", 8_192, 8_192)
    yield "1000 scans of 67 megapixels", huge[:-2] + scan * 1_000 + b"\xff\xd9"
    yield "a million start-of-image markers", jpeg[:2] + b"\xff\xd8" * MIB + jpeg[2:]
    frame = jpeg[jpeg.index(b"\xff\xc0") : jpeg.index(b"\xff\xc0") + 19]
    yield "5000 frames", jpeg[:2] + frame * 5_000 + jpeg[2:]


def webps() -> Iterator[tuple[str, bytes]]:
    picture = FILES["WEBP"][12:]
    for name in (b"EXIF", b"XMP ", b"ICCP"):
        yield f"WEBP {name.decode()} of 3 megabytes", webp(vp8x(24, 16), picture, chunk(name, bytes(3 * MIB)))
    yield "WEBP: 20000 empty chunks", webp(vp8x(24, 16), picture, chunk(b"XXXX", b"") * 20_000)
    yield (
        "WEBP: 20000 empty frames",
        webp(vp8x(24, 16, 2), chunk(b"ANIM", bytes(6)), chunk(b"ANMF", bytes(16)) * 20_000),
    )
    yield "pictures of two sizes, one huge", webp(vp8x(24, 16), vp8x(16_384, 16_384), picture)


def gifs() -> Iterator[tuple[str, bytes]]:
    gif = FILES["GIF"]
    start = 13 + (3 << (gif[10] & 7) + 1)
    for name, blocks in (
        ("a comment in pieces of a byte", b"!\xfe" + b"\1a" * MIB + b"\0"),
        ("an application block in pieces of a byte", b"!\xff" + b"\1a" * MIB + b"\0"),
        ("a comment of 4 megabytes", b"!\xfe" + (b"\xff" + b"a" * 255) * 16_384 + b"\0"),
        ("a million empty comments", b"!\xfe\0" * MIB),
        ("a million graphic controls", b"!\xf9\4abcd\0" * (MIB // 4)),
        ("a million strays", b"x" * MIB),
        ("a million zeros", bytes(MIB)),
    ):
        yield f"GIF: {name}", gif[:start] + blocks + gif[start:]


def bmps() -> Iterator[tuple[str, bytes]]:
    for compression in (1, 2):
        for codes in (b"\1\5", b"\0\2\xff\xff", b"\0\0"):
            yield f"runs {compression} {codes!r}", bmp(8_000, 8_000, compression, codes * MIB)
    for bits in (0, 7, 64, 65_535):
        yield f"{bits} bits", _at(FILES["BMP"], 28, "<H", bits)
    yield "a palette of 4 billion", _at(bmp(8, 8, 0, bytes(64)), 46, "<L", 2**32 - 1)
    yield "a header of 4 gigabytes", _at(FILES["BMP"], 14, "<L", 2**32 - 1)
    yield "pixels in another place", _at(FILES["BMP"], 10, "<L", 2**32 - 1)


_REST = [(258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1), (273, 4, 1, 1), (277, 3, 1, 1), (278, 4, 1, 1), (279, 4, 1, 8)]
_EIGHT = [(256, 3, 1, 8), (257, 3, 1, 8), *_REST]


def tiffs() -> Iterator[tuple[str, bytes]]:
    for big in (False, True):
        kind = "BigTIFF" if big else "TIFF"
        for name, tag in (("strips", 273), ("lengths", 279), ("resolutions", 282), ("colours", 320), ("tiles", 324)):
            entries = [entry for entry in _EIGHT if entry[0] != tag]
            yield f"{kind}: a million {name}", tiff([*entries, (tag, 4, MIB, 8)], bytes(4 * MIB), big=big)
        yield f"{kind}: 4 billion strips", tiff([*_EIGHT, (273, 4, 2**32 - 1, 8)], big=big)
        yield f"{kind}: 60000 entries", tiff([*_EIGHT, *((1000 + at, 7, 1, 1) for at in range(60_000))], big=big)
        yield f"{kind}: huge tiles", tiff([*_EIGHT, (322, 4, 1, 2**31), (323, 4, 1, 2**31), (324, 4, 1, 8)], big=big)
        yield f"{kind}: 70000 bits", tiff([*_EIGHT[:2], (258, 3, 70_000, 8), *_REST[1:]], bytes(140_000), big=big)
        for compression in (0, 6, 9, 34_712, 34_887, 34_925, 50_000, 50_001, 65_535):
            entries = [entry for entry in _EIGHT if entry[0] != 259]
            yield f"{kind}: compressed by {compression}", tiff([*entries, (259, 3, 1, compression)], bytes(64), big=big)
    yield "a directory in itself", b"II*\0" + struct.pack("<L", 4) + bytes(40)
    yield "a directory beyond the end", b"II*\0" + struct.pack("<L", 2**32 - 2)
    yield "no directory", b"II*\0\0\0\0\0"
    yield "a big directory beyond the end", b"II+\0\x08\0\0\0" + struct.pack("<Q", 2**64 - 8)
    yield "a big directory of everything", b"II+\0\x08\0\0\0" + struct.pack("<QQ", 16, 2**64 - 1) + bytes(200)


def cut() -> Iterator[tuple[str, bytes]]:
    for format_, data in FILES.items():
        for percent in (3, 10, 50, 90):
            yield f"{percent} percent of a {format_}", data[: len(data) * percent // 100]


def odd_images() -> Iterator[tuple[str, bytes]]:
    """Strange, and yet images within the limits."""
    most = {"WEBP": 16_383, "JPEG": 65_500}
    for width, height in ((1, 1), (1, 65_535), (65_535, 1), (3, 7)):
        for format_ in FILES:
            sides = min(width, most.get(format_, width)), min(height, most.get(format_, height))
            image = Image.new("RGB", sides, "red")
            yield f"{format_} of {width} x {height}", encode(image, format_)
    frames = [Image.fromarray(noise(16, 16, seed=seed)) for seed in range(500)]
    for format_ in ("GIF", "PNG", "WEBP", "TIFF"):
        yield f"{format_} of 500 frames", encode(frames[0], format_, save_all=True, append_images=frames[1:])
    png = FILES["PNG"]
    yield "text of a megabyte", inserted(png, png_chunk(b"tEXt", b"key\0" + b"a" * MIB))
    yield "a profile of a megabyte", inserted(png, png_chunk(b"iCCP", b"key\0\0" + zlib.compress(bytes(MIB - 1))))
    yield "2500 chunks", inserted(png, png_chunk(b"teSt", b"") * 2_500)
    yield "pixels with a gigabyte after them", _with_more(png, zlib.compress(bytes(64 * MIB)) * 16)
    yield "pixels that go on for 64 megabytes", png_file(8, 8, 8, 2, bytes(25 * 8) + bytes(64 * MIB))
    yield "10 megapixels of one colour", png_file(4_000, 2_500, 8, 2, bytes((1 + 12_000) * 2_500))
    yield "a GIF of 10 megapixels", encode(Image.new("P", (4_000, 2_500)), "GIF")
    yield "a GIF of noise", encode(Image.fromarray(noise(1_100, 1_100, 1)), "GIF")
    gif = FILES["GIF"]
    start = 13 + (3 << (gif[10] & 7) + 1)
    comment = b"!\xfe" + (b"\xff" + b"a" * 255) * 800 + b"\0"
    yield "a GIF with a comment of 200 kilobytes", gif[:start] + comment + gif[start:]
    yield "a JPEG of 10 megapixels", encode(Image.new("RGB", (4_000, 2_500)), "JPEG", progressive=True)
    yield (
        "EXIF of 60000 entries",
        inserted(png, png_chunk(b"eXIf", exif([(at, 7, MIB, 8) for at in range(60_000)], MIB))),
    )
    yield "EXIF that ends in itself", inserted(png, png_chunk(b"eXIf", exif([(0x8769, 4, 1, 8), (0x8825, 4, 1, 8)])))
    yield "a directory that is its own next", _ring()
    yield "runs within the limit", bmp(400, 300, 1, b"\xff\5\x91\5\0\0" * 300)
    yield "a strip a row", encode(Image.new("L", (8, 20_000)), "TIFF", tiffinfo={278: 1})


# How files are put together


def inserted(png: bytes, chunks: bytes) -> bytes:
    return png[:33] + chunks + png[33:]


def _with_more(png: bytes, more: bytes) -> bytes:
    """The PNG with more compressed data after its own."""
    return png[:-12] + png_chunk(b"IDAT", more) + png[-12:]


def chunk(name: bytes, body: bytes) -> bytes:
    return name + struct.pack("<L", len(body)) + body + b"\0" * (len(body) & 1)


def webp(*chunks: bytes) -> bytes:
    body = b"WEBP" + b"".join(chunks)
    return b"RIFF" + struct.pack("<L", len(body)) + body


def vp8x(width: int, height: int, flags: int = 0) -> bytes:
    sides = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    return chunk(b"VP8X", bytes([flags, 0, 0, 0]) + sides)


def bmp(width: int, height: int, compression: int, pixels: bytes) -> bytes:
    """With a palette of 256 colours."""
    bits = 4 if compression == 2 else 8
    header = struct.pack("<LllHHLLllLL", 40, width, height, 1, bits, compression, len(pixels), 0, 0, 256, 256)
    return b"BM" + struct.pack("<LHHL", 1078 + len(pixels), 0, 0, 1078) + header + bytes(1024) + pixels


def tiff(entries: list[tuple[int, int, int, int]], after: bytes = b"", *, big: bool = False) -> bytes:
    """A directory of (tag, type, count, value or place), and what comes after it."""
    if big:
        body = b"".join(struct.pack("<HHQQ", *entry) for entry in sorted(entries))
        return b"II+\0\x08\0\0\0" + struct.pack("<QQ", 16, len(entries)) + body + bytes(8) + after
    body = b"".join(struct.pack("<HHLL", *entry) for entry in sorted(entries))
    return b"II*\0" + struct.pack("<LH", 8, len(entries)) + body + bytes(4) + after


def exif(entries: list[tuple[int, int, int, int]], more: int = 0) -> bytes:
    return tiff(entries, bytes(more))


def _ring() -> bytes:
    data = bytearray(tiff(_EIGHT, bytes(64)))
    struct.pack_into("<L", data, 10 + 12 * len(_EIGHT), 8)
    return bytes(data)


def _at(data: bytes, place: int, form: str, *values: int) -> bytes:
    changed = bytearray(data)
    struct.pack_into(form, changed, place, *values)
    return bytes(changed)


def _patched(data: bytes, marker: bytes, after: int, form: str, *values: int) -> bytes:
    return _at(data, data.index(marker) + after, form, *values)
