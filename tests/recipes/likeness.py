"""Whether what a page shows is what a program prints, but for what is different each time.

Numbers, sizes, times and UUIDs may be others; `…` alone on a line stands for any lines, and inside
a line for any text. How lines are broken does not matter: that depends on what is in them.
"""

from __future__ import annotations

import re

_PARTS = re.compile(
    r"(?P<uuid>[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12})"
    r"|(?P<hex>\b[0-9a-f]{16,}\b)"
    r"|(?P<print>\b(?:[0-9A-F]{2}:){31}[0-9A-F]{2}\b)"
    r"|(?P<mac>\b(?:[0-9a-f]{2}:){5}[0-9a-f]{2}\b)"
    r"|(?P<size>\b\d+(?:\.\d+)? (?:B|KiB|MiB|GiB|TiB)\b)"
    r"|(?P<took>\b\d+(?:\.\d+)? [smhd](?: \d+ [smh])?\b)"
    r"|(?P<moment>\b\d{4}-\d\d-\d\d[T ]\d\d:\d\d(?::\d\d(?:\.\d+)?)?(?:Z|\+00:00)?)"
    r"|(?P<stamp>\b\d{8}T\d{6}Z)"
    r"|(?P<number>(?<![\w-])\d[\d.:]*%?(?!\w))"
    r"|(?P<rule>─+)"
    r"|(?P<any>…)"
    r"|(?P<space>\s+)"
)
_MEANS = {
    "uuid": r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}",
    "hex": r"[0-9a-f]{16,}",
    "print": r"(?:[0-9A-F]{2}:){31}[0-9A-F]{2}",
    "mac": r"(?:[0-9a-f]{2}:){5}[0-9a-f]{2}",
    "size": r"\d+(?:\.\d+)? (?:B|KiB|MiB|GiB|TiB)",
    "took": r"\d+(?:\.\d+)? [smhd](?: \d+ [smh])?",
    "moment": r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d(?::\d\d(?:\.\d+)?)?(?:Z|\+00:00)?",
    "stamp": r"\d{8}T\d{6}Z",
    "number": r"\d[\d.:]*%?",
    "rule": r"─+",
    "any": r"[\s\S]*?",
    "space": r"\s+",
}


def pattern_of(shown: str) -> str:
    """Return a regular expression for all that a shown output stands for."""
    parts, end = [], 0
    for match in _PARTS.finditer(shown := shown.strip()):
        parts += [re.escape(shown[end : match.start()]), _MEANS[str(match.lastgroup)]]
        end = match.end()
    return "".join(parts) + re.escape(shown[end:])


def is_like(shown: str, printed: str) -> bool:
    """Return whether a program's output is what a page shows."""
    return re.fullmatch(pattern_of(shown), printed.strip()) is not None


def assert_like(shown: str, printed: str) -> None:
    """Check that, and name both where they differ."""
    assert is_like(shown, printed), f"the page shows\n{shown}\nand it prints\n{printed}"
