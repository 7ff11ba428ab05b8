"""The files that docs/writing-a-transport.md shows, exactly as written there."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "writing-a-transport.md"
_FILE = re.compile(r"^`([\w./-]+)`[^\n]*:\n\n```\w+\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def files() -> dict[str, str]:
    """Return what stands on the page, by path: a line that ends in a colon, then a block."""
    return dict(_FILE.findall(PAGE.read_text()))


def install(directory: Path) -> Path:
    """Write the files, and beside them what an editable installation leaves; return the path."""
    for path, content in files().items():
        file = directory / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content)
    project = tomllib.loads((directory / "pyproject.toml").read_text())["project"]
    info = directory / "src" / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
    )
    lines = []
    for group, points in project["entry-points"].items():
        lines += [f"[{group}]", *(f"{name} = {target}" for name, target in points.items())]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n")
    return directory / "src"
