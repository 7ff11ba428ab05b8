from __future__ import annotations

import math

import pytest

from xorepd.units import (
    GiB,
    KiB,
    MiB,
    TiB,
    format_duration,
    format_rate,
    format_size,
    parse_duration,
    parse_rate,
    parse_size,
)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("4096", 4096),
        ("0", 0),
        ("12B", 12),
        ("64MiB", 64 * MiB),
        ("1.5 GiB", 3 * GiB // 2),
        (" 2 TiB ", 2 * TiB),
        ("1KiB", KiB),
        ("9007199254740993", 9007199254740993),
    ],
)
def test_size_is_read_as_people_write_it(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "MiB", "64MB", "64 mib", "-1", "1,5GiB", "1e9", "64MiB/s"])
def test_what_is_no_size_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ValueError, match="write it like 64MiB"):
        parse_size(text)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("30s", 30), ("15m", 900), ("1h30m", 5400), ("1h 30m", 5400), ("2d", 172800), ("0.5s", 0.5)],
)
def test_duration_is_read_as_people_write_it(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", " ", "15", "m", "15min", "-5m", "5m3", "1h,30m", "5M"])
def test_what_is_no_duration_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ValueError, match="write it like 30s"):
        parse_duration(text)


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 B"), (512, "512 B"), (2 * MiB, "2.0 MiB"), (8 * GiB, "8.0 GiB"), (3 * TiB, "3.0 TiB")],
)
def test_size_is_written_for_people(size: int, text: str) -> None:
    assert format_size(size) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.42, "0.4 s"),
        (42, "42 s"),
        (59.6, "1 m 0 s"),
        (200, "3 m 20 s"),
        (7500, "2 h 5 m"),
        (273600, "3 d 4 h"),
    ],
)
def test_duration_is_written_for_people(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


@pytest.mark.parametrize(
    ("text", "bytes_per_s"),
    [
        ("100Mbit/s", 12_500_000),
        ("1.5 Gbit/s", 187_500_000),
        ("64kbit/s", 8000),
        ("8bit/s", 1),
        ("12MiB/s", 12 * MiB),
        ("512 KiB/s", 512 * KiB),
    ],
)
def test_rate_is_read_as_people_write_it(text: str, bytes_per_s: float) -> None:
    assert parse_rate(text) == bytes_per_s


@pytest.mark.parametrize("text", ["", "fast", "100", "100Mbit", "12MiB", "-1MiB/s", "/s", "1MB/s"])
def test_what_is_no_rate_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ValueError, match="write it like 100Mbit/s or 12MiB/s"):
        parse_rate(text)


@pytest.mark.parametrize(
    ("bytes_per_s", "text"),
    [
        (12_500_000, "100 Mbit/s"),
        (187_500_000, "1.5 Gbit/s"),
        (8000, "64 kbit/s"),
        (MiB, "8.389 Mbit/s"),
        (1, "8 bit/s"),
        (math.inf, "unlimited"),
    ],
)
def test_rate_is_written_for_people(bytes_per_s: float, text: str) -> None:
    assert format_rate(bytes_per_s) == text
