"""Notify systemd of the state of the service: datagrams of `KEY=value` lines.

Without `$NOTIFY_SOCKET` (another supervisor, or a terminal) nothing is sent.
Source: sd_notify(3), and systemd.service(5) for `Type=notify` and `WatchdogSec=`.
"""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import Mapping


class Notifier:
    """Sends notifications to systemd, if it has started us."""

    def __init__(self, environ: Mapping[str, str] | None = None) -> None:
        environ = os.environ if environ is None else environ
        address = environ.get("NOTIFY_SOCKET", "")
        # A leading @ stands for the zero byte of an abstract socket address.
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._watchdog_s = _watchdog(environ)

    def ready(self, status: str) -> None:
        """Report that start or reload is complete."""
        self._send("READY=1", f"STATUS={status}")

    def reloading(self) -> None:
        """Report that a reload has begun; `ready` ends it, even after a refused reload."""
        # The time lets systemd (253 and later) tell this reload from an earlier one.
        self._send("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self, status: str) -> None:
        """Report that the service is stopping."""
        self._send("STOPPING=1", f"STATUS={status}")

    def status(self, text: str) -> None:
        """Set the line that `systemctl status` shows."""
        self._send(f"STATUS={text}")

    async def feed_watchdog(self) -> None:
        """Feed the watchdog while the event loop runs; return at once if there is none.

        Twice per period, as sd_watchdog_enabled(3) advises.
        """
        if self._watchdog_s is None:
            return
        while True:
            self._send("WATCHDOG=1")
            await asyncio.sleep(self._watchdog_s / 2)

    def _send(self, *lines: str) -> None:
        if not self._address:
            return
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as out:
            out.setblocking(False)
            try:
                out.sendto("\n".join(lines).encode(), self._address)
            except OSError:
                # systemd does not listen, or its queue is full. A status line is no reason to fail,
                # and the watchdog acts by itself when it receives nothing.
                return


def _watchdog(environ: Mapping[str, str]) -> float | None:
    """Return the watchdog's period in seconds, if it is set and meant for this process."""
    if environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    try:
        microseconds = int(environ.get("WATCHDOG_USEC", ""))
    except ValueError:
        return None
    return microseconds / 1e6 if microseconds > 0 else None
