"""`xorepd relay`: run the relay, check its configuration, make its certificates."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from xorepd.errors import ConfigError, Refused, XorepdError
from xorepd.screen import complain, say

DEFAULT_CONFIG = Path("/etc/xorepd-relay/relay.toml")

EXIT_FAILED, EXIT_CONFIG = 1, 78
"""As of `xorepd run`: 78 is EX_CONFIG of sysexits.h, after which the unit does not restart."""

app = typer.Typer(
    help="Write replicas beside their target pool, for daemons far away.", no_args_is_help=True
)

Config = Annotated[
    Path,
    typer.Option(
        "--config",
        "-c",
        metavar="FILE",
        help="The configuration, in TOML.",
        readable=False,  # an unreadable file is a bad configuration, not wrong usage
    ),
]


@app.command()
def run(config: Config = DEFAULT_CONFIG) -> None:
    """Run the relay in the foreground, for systemd."""
    # Imported here: `--help` and `init` need none of it.
    import uvloop

    from xorepd.process.logs import configure
    from xorepd.relay.app import run_relay
    from xorepd.relay.settings import load_relay

    try:
        settings = load_relay(config)
        configure(level=settings.relay.log_level, style=settings.relay.log_format)
        uvloop.run(run_relay(settings))
    except XorepdError as error:
        _refuse(error)


@app.command()
def check(config: Config = DEFAULT_CONFIG) -> None:
    """Check a configuration, and show the pools and clients of the relay."""
    from xorepd.relay.settings import load_relay

    try:
        settings = load_relay(config)
    except XorepdError as error:
        _refuse(error)
    for pool in settings.pools.values():
        say(f"writes to {pool.name}, {pool.url}")
    for name, client in settings.clients.items():
        whose = ", ".join(client.pools) or "any"
        say(f"client {name}: replicas of source pools {whose}")
    say(f"{config}: good (listens on {settings.relay.listen})")


@app.command()
def init(
    directory: Annotated[Path, typer.Argument(help="Where keys and certificates are kept.")],
    name: Annotated[
        list[str] | None,
        typer.Option(help="Host name or address that daemons reach the relay by; repeat it."),
    ] = None,
    client: Annotated[
        list[str] | None, typer.Option(help="Name of a daemon that may connect; repeat it.")
    ] = None,
) -> None:
    """Create a CA, the certificate of the relay and those of clients; later, more of them.

    Copy ca.pem, NAME.pem and NAME.key to the client NAME over a safe way, and remove NAME.key here.
    """
    from xorepd.relay.certificates import make_authority, make_client, make_relay

    now = datetime.now(UTC)
    try:
        if not name and not client:
            raise Refused("nothing to make: name the relay's host with --name, or a --client")
        is_new = not (directory / "ca.pem").exists()
        if is_new and not name:
            raise Refused(f"{directory} has no authority yet: begin with --name HOST")
        made = [make_authority(directory, now)] if is_new else []
        if name:
            made.append(make_relay(directory, name, now))
        made += [make_client(directory, each, now) for each in client or ()]
    except XorepdError as error:
        _refuse(error)
    for certificate in made:
        say(f"{certificate} and {certificate.with_suffix('.key').name}")


def _refuse(error: XorepdError) -> NoReturn:
    for sentence in str(error).splitlines():
        complain(f"xorepd: {sentence}")
    sys.exit(EXIT_CONFIG if isinstance(error, ConfigError) else EXIT_FAILED)
