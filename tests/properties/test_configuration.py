"""Whatever a configuration holds, looking at it ends, and says something just if it is wrong."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from xorepd.config.checks import check_references
from xorepd.config.explain import Explainer
from xorepd.config.load import validate
from xorepd.config.models import Settings

FILE = Path("/etc/xorepd/xorepd.toml")

GOOD: dict[str, Any] = {
    "daemon": {"max_vms": 3, "memory": "64MiB", "grace": "5s"},
    "pools": {
        name: {"name": name, "url": f"https://{name}", "password_env": "P", "connections": 2}
        for name in ("prod", "dr")
    },
    "jobs": {
        name: {
            "name": name,
            "source": "prod",
            "vms": [f"{name}01", "x*"],
            "exclude": ["x1"],
            "targets": [{"pool": "dr", "sr": f"sr-{name}", "keep": 3}],
            "schedule": "*/5 * * * *",
            "keep": {"last": 3, "daily": 2},
            "hooks": {"before": ["/bin/true"], "timeout": "3s"},
            "changed_blocks": "use",
        }
        for name in ("web", "db")
    },
}

JUNK: st.SearchStrategy[Any] = st.sampled_from(
    [None, 0, 3, -1, 1.5, True, "", "x", "*/90 * * * *", [], ["a"], [1], {}, {"x": 1}, [[]], [{}]]
)

Place = tuple[str | int, ...]


def places(value: Any, place: Place = ()) -> list[Place]:
    """Return every place in a tree of tables and lists."""
    found = [place] if place else []
    items: Iterable[tuple[Any, Any]] = value.items() if isinstance(value, dict) else ()
    items = enumerate(value) if isinstance(value, list) else items
    for key, inner in items:
        found += places(inner, (*place, key))
    return found


DEEDS = st.lists(
    st.tuples(
        st.sampled_from(places(GOOD)),
        st.one_of(
            st.tuples(st.just("set"), JUNK),
            st.tuples(st.just("remove"), st.none()),
            st.tuples(st.just("add"), JUNK),
        ),
    ),
    max_size=6,
)


def do(tables: dict[str, Any], place: Place, deed: str, value: Any) -> None:
    above: Any = tables
    for part in place[:-1]:
        try:
            above = above[part]
        except (KeyError, IndexError, TypeError):
            return
    last = place[-1]
    if isinstance(above, dict) and last in above:
        if deed == "remove":
            del above[last]
        else:
            above[last if deed == "set" else "surplus"] = value
    elif isinstance(above, list) and isinstance(last, int) and last < len(above):
        above[last] = value


@settings(deadline=None)
@given(DEEDS)
def test_everything_wrong_is_found_and_the_rest_can_be_used(deeds: list[Any]) -> None:
    tables = copy.deepcopy(GOOD)
    for place, (deed, value) in deeds:
        do(tables, place, deed, copy.deepcopy(value))
    before = copy.deepcopy(tables)
    explainer = Explainer(FILE, "", tables)

    usable = validate(Settings, tables, explainer)

    assert tables == before
    try:
        whole = Settings.model_validate({**tables, "file": FILE})
    except ValidationError:
        assert explainer.problems
        assert all(str(problem).startswith(f"{FILE}: ") for problem in explainer.problems)
    else:
        assert (explainer.problems, usable) == ([], whole)
    if usable is not None:
        check_references(usable, tables.get("pools"), explainer)
