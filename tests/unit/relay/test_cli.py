from __future__ import annotations

from pathlib import Path

from typer.testing import CliRunner

from xorepd.cli import app

RUN = CliRunner()


def test_init_makes_all_that_a_relay_and_its_clients_need(tmp_path: Path) -> None:
    pki = tmp_path / "pki"
    made = RUN.invoke(
        app, ["relay", "init", str(pki), "--name", "relay.example", "--client", "paris"]
    )

    assert made.exit_code == 0, made.output
    assert {path.name for path in pki.iterdir()} == {
        f"{stem}.{kind}" for stem in ("ca", "relay", "paris") for kind in ("pem", "key")
    }


def test_init_adds_a_client_later(tmp_path: Path) -> None:
    RUN.invoke(app, ["relay", "init", str(tmp_path), "--name", "relay.example"])

    added = RUN.invoke(app, ["relay", "init", str(tmp_path), "--client", "berlin"])
    again = RUN.invoke(app, ["relay", "init", str(tmp_path), "--client", "berlin"])

    assert (added.exit_code, (tmp_path / "berlin.key").exists()) == (0, True)
    assert again.exit_code == 1
    assert "is there already" in again.output


def test_init_says_what_it_needs(tmp_path: Path) -> None:
    nothing = RUN.invoke(app, ["relay", "init", str(tmp_path)])
    no_relay = RUN.invoke(app, ["relay", "init", str(tmp_path), "--client", "paris"])

    assert "name the relay's host with --name" in nothing.output
    assert "begin with --name" in no_relay.output
    assert not list(tmp_path.iterdir())


def test_check_says_whom_it_would_let_in(tmp_path: Path) -> None:
    RUN.invoke(app, ["relay", "init", str(tmp_path), "--name", "relay.example"])
    file = tmp_path / "relay.toml"
    file.write_text(
        '[relay]\ncertificate = "relay.pem"\nkey = "relay.key"\nca = "ca.pem"\n'
        '[pools.dr]\nurl = "https://dr.example"\npassword_env = "DR_PASSWORD"\n'
        "[clients.paris]\n"
    )

    good = RUN.invoke(app, ["relay", "check", "-c", str(file)], env={"DR_PASSWORD": "x"})
    bad = RUN.invoke(app, ["relay", "check", "-c", str(file)], env={"DR_PASSWORD": ""})

    assert good.exit_code == 0, good.output
    assert "writes to dr, https://dr.example" in good.output
    assert "client paris: replicas of source pools any" in good.output
    assert bad.exit_code == 78
    assert "DR_PASSWORD" in bad.output
