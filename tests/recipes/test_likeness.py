from __future__ import annotations

import pytest

from tests.recipes.likeness import is_like

SHOWN = """web01: sweep
…
web01: delta, 84.0 MiB read, 2.0 MiB sent in 4.4 s
"""


@pytest.mark.parametrize(
    "printed",
    [
        "web01: sweep\nweb01: transfer\nweb01: delta, 0 B read, 1.5 GiB sent in 1 m 7 s\n",
        "web01: sweep\n\nweb01: delta, 84.0 MiB\nread, 2.0 MiB sent in 4.4 s",
    ],
)
def test_what_differs_each_time_may_differ(printed: str) -> None:
    assert is_like(SHOWN, printed)


@pytest.mark.parametrize(
    "printed",
    [
        "",
        "web01: sweep",
        "web01: delta, 84.0 MiB read, 2.0 MiB sent in 4.4 s",
        SHOWN.replace("…", "web01: prune") + "more",
        SHOWN.replace("delta", "full"),
        SHOWN.replace("web01", "web02"),
        SHOWN.replace("84.0 MiB", "some"),
    ],
)
def test_all_else_is_another_output(printed: str) -> None:
    assert not is_like(SHOWN, printed)


@pytest.mark.parametrize(
    ("shown", "printed"),
    [
        ("run 81f4e540-dc57-4f76-88c9-3b78206dc491", "run 00000000-0000-4000-8000-000000000000"),
        ("sha256 4604c5e683cc75087375…", "sha256 0000c5e683cc750873750000 on both sides"),
        ("05:06:03   web   delta", "Mon  web   delta"),
        ("─────", "──"),
    ],
)
def test_names_of_things_may_differ_and_words_may_not(shown: str, printed: str) -> None:
    assert is_like(shown, printed) == ("Mon" not in printed)
