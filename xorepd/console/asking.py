"""The common part of all `xorepctl` commands: find the daemon, ask it, show the reply."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated, TypeVar

import typer
from rich.console import RenderableType

from xorepd.config.load import load
from xorepd.config.models import DaemonSettings
from xorepd.control.client import Client, NoDaemon
from xorepd.control.protocol import Reply
from xorepd.errors import XorepdError
from xorepd.screen import Screen, complain, say_json

EXIT_REFUSED = 1
EXIT_NO_DAEMON = 3
EXIT_INTERRUPTED = 130

T = TypeVar("T")

console = Screen()

SOCKET_VARIABLE = "XOREPD_SOCKET"

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Socket = Annotated[
    Path | None,
    typer.Option(
        "--socket",
        "-s",
        help="The daemon's control socket, or $XOREPD_SOCKET.",
        readable=False,  # a missing permission is reported when connecting
    ),
]
Config = Annotated[
    Path | None,
    typer.Option("--config", "-c", help="Configuration file with the socket.", readable=False),
]


def ask(socket: Path | None, config: Path | None, question: Callable[[Client], Awaitable[T]]) -> T:
    """Return the daemon's answer, or print a sentence and exit."""

    async def ask_daemon(path: Path) -> T:
        async with Client(path) as client:
            return await question(client)

    try:
        return asyncio.run(ask_daemon(find_socket(socket, config)))
    except KeyboardInterrupt:
        sys.exit(EXIT_INTERRUPTED)
    except XorepdError as error:
        for sentence in str(error).splitlines():
            complain(f"xorepctl: {sentence}")
        sys.exit(EXIT_NO_DAEMON if isinstance(error, NoDaemon) else EXIT_REFUSED)


def find_socket(socket: Path | None, config: Path | None) -> Path:
    """Return the socket: from option, configuration file, environment or default, in this order."""
    if socket is not None:
        return socket
    if config is not None:
        return load(config).daemon.socket
    if in_environment := os.environ.get(SOCKET_VARIABLE):
        return Path(in_environment)
    return DaemonSettings().socket


def show_reply(reply: Reply, view: RenderableType, *, as_json: bool) -> None:
    if as_json:
        say_json(reply.model_dump_json(indent=2))
    else:
        console.print(view)
