from __future__ import annotations

import re
from pathlib import Path

import pytest
from pydantic import BaseModel

from xorepd.config.load import load
from xorepd.config.models import DaemonSettings, JobSettings, PoolSettings, TargetSettings
from xorepd.ids import JobName, PoolName
from xorepd_lab.demo.stage import CONFIG as DEMO

CONFIG = Path(__file__).parents[3] / "config"


@pytest.mark.parametrize(
    ("model", "table"),
    [(DaemonSettings, "daemon"), (PoolSettings, "pools.paris"), (JobSettings, "jobs.web")],
)
def test_example_names_every_option_with_its_default(model: type[BaseModel], table: str) -> None:
    text = (CONFIG / "xorepd.toml").read_text()
    section = text.split(f"[{table}]\n")[1].split("\n[")[0]

    named = set(re.findall(r"^(?:# )?(\w+) = ", section, re.MULTILINE))

    assert named == model.model_fields.keys() - {"name"}


def test_example_shows_every_option_of_a_target() -> None:
    line = next(
        line
        for line in (CONFIG / "xorepd.toml").read_text().splitlines()
        if line.startswith("    { ") and "keep" in line
    )

    assert set(re.findall(r"(\w+) = ", line)) == TargetSettings.model_fields.keys()


def test_example_shows_the_defaults_of_the_daemon() -> None:
    assert load(CONFIG / "xorepd.toml").daemon == DaemonSettings()


def test_example_loads() -> None:
    settings = load(CONFIG / "xorepd.toml")

    assert set(settings.pools) == {"paris", "lyon"}
    assert settings.pools[PoolName("paris")].ca_file == CONFIG / "paris.pem"


def test_demo_loads_with_its_variables() -> None:
    environ = {
        "XOREPD_DEMO_DIR": "/demo",
        "XOREPD_DEMO_PROD_URL": "https://127.0.0.1:4431",
        "XOREPD_DEMO_DR_URL": "https://127.0.0.1:4432",
    }

    settings = load(DEMO, environ=environ)

    assert settings.daemon.socket == Path("/demo/control.sock")
    assert settings.jobs[JobName("web")].vms == ("web01",)
