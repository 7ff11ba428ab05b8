"""A thin, long link: two network namespaces, and between them a rate and a round trip.

    near                                                                     far
    processes ── TCP ── tbf ── tun ──► delay.py holds each packet ──► tun ── TCP ── processes

The rate is the kernel's (tbf, in each direction), with a queue of one round trip's worth of bytes,
as a router has it. The delay is `tests.bench.delay`, because not every kernel has netem. Everything
here ends with the block that opened it. Needs root.
"""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

TUN: Final = Path("/dev/net/tun")
NAMESPACES: Final = Path("/run/netns")
CLONE_NEWNET: Final = 0x40000000
BURST: Final = "32kb"
"""What tbf lets through at once; larger segments are cut by it."""
CONGESTION_CONTROL: Final = "cubic"
"""What XCP-ng, XenServer and Debian come with, whatever this machine uses."""
NEAR: Final = "10.83.1"
FAR: Final = "10.83.2"
"""Where the two sides have their addresses."""
PROBE_S: Final = 30.0


class NetworkError(Exception):
    """The link cannot be made here."""


@dataclass(frozen=True)
class Side:
    """One end of the link: a namespace, its address and its device."""

    namespace: str
    address: str
    device: str

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Let the sockets and processes that this thread makes belong here."""
        home = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        there = os.open(NAMESPACES / self.namespace, os.O_RDONLY)
        try:
            _set_namespace(there)
            try:
                yield
            finally:
                _set_namespace(home)
        finally:
            os.close(there)
            os.close(home)

    def sent(self) -> int:
        """Return the bytes that have left towards the other side, with every packet's headers."""
        said = _run("tc", "-s", "-j", "-n", self.namespace, "qdisc", "show", "dev", self.device)
        [rate] = [each for each in json.loads(said) if each["kind"] == "tbf"]
        return int(rate["bytes"])


@dataclass(frozen=True)
class Link:
    near: Side
    far: Side
    bits_per_s: int

    def measured_rate(self, seconds: float = 8.0) -> float:
        """Return the bytes per second of one bulk TCP connection, near to far.

        The first quarter of the time is left out: a connection begins slowly.
        """
        with self._connection() as (sending, receiving):
            sending.settimeout(PROBE_S)
            until = time.monotonic() + seconds

            def send() -> None:
                block = os.urandom(1 << 18)
                with suppress(OSError):
                    while time.monotonic() < until:
                        sending.sendall(block)
                    sending.shutdown(socket.SHUT_WR)

            sender = threading.Thread(target=send, name="bulk")
            sender.start()
            counted_from, counted = until - 0.75 * seconds, 0
            first = last = 0.0
            while data := receiving.recv(1 << 20):
                last = time.monotonic()
                if last > until:
                    break
                if last >= counted_from:
                    counted += len(data) if first else 0
                    first = first or last
            receiving.close()
            sender.join()
        return counted / (last - first)

    def measured_round_trip(self) -> float:
        """Return the seconds that one byte and its answer take, over TCP, on an idle link."""
        times = []
        with self._connection() as (one, other):
            for _ in range(9):
                began = time.monotonic()
                one.sendall(b"?")
                other.recv(1)
                other.sendall(b"!")
                one.recv(1)
                times.append(time.monotonic() - began)
        return statistics.median(times)

    @contextmanager
    def _connection(self) -> Iterator[tuple[socket.socket, socket.socket]]:
        with self.far.entered():
            listening = socket.create_server((self.far.address, 0))
        with closing(listening):
            listening.settimeout(PROBE_S)
            with self.near.entered():
                near = socket.create_connection(listening.getsockname(), PROBE_S)
            far, _ = listening.accept()
        with closing(near), closing(far):
            for each in (near, far):
                each.settimeout(PROBE_S)
                each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            yield near, far


@contextmanager
def open_link(bits_per_s: int, round_trip_s: float) -> Iterator[Link]:
    """Provide a link of that rate in each direction, and that round trip while it is idle.

    Raises:
        NetworkError: this user, kernel or machine cannot make one.
    """
    _check()
    number = os.getpid()
    near = Side(f"xorepd-near-{number}", f"{NEAR}.1", f"wan{number}n")
    far = Side(f"xorepd-far-{number}", f"{FAR}.1", f"wan{number}f")
    with ExitStack() as stack:
        for side in (near, far):
            _run("ip", "netns", "add", side.namespace)
            stack.callback(_run, "ip", "netns", "delete", side.namespace)
        stack.enter_context(_delaying(round_trip_s / 2, near, far))
        for side, other in ((near, far), (far, near)):
            _bring_up(side, other, bits_per_s, round_trip_s)
        yield Link(near, far, bits_per_s)


@contextmanager
def _delaying(seconds: float, *sides: Side) -> Iterator[None]:
    """Run the program that delays; its devices go to the two sides."""
    names = [side.device for side in sides]
    command = [sys.executable, "-m", "tests.bench.delay", str(seconds), *names]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as program:
        try:
            assert program.stdout is not None
            if program.stdout.readline().strip() != "ready":
                raise NetworkError("the tun devices cannot be made; standard error says why")
            for side in sides:
                _run("ip", "link", "set", side.device, "netns", side.namespace)
            yield
        finally:
            program.terminate()


def _bring_up(side: Side, other: Side, bits_per_s: int, round_trip_s: float) -> None:
    ip = ("ip", "-n", side.namespace)
    _run(*ip, "link", "set", "lo", "up")
    _run(*ip, "address", "add", side.address, "peer", other.address, "dev", side.device)
    _run(*ip, "link", "set", side.device, "up")
    queue = ("limit", str(round(bits_per_s / 8 * round_trip_s)))
    rate = ("rate", f"{bits_per_s}bit", "burst", BURST, *queue)
    _run("tc", "-n", side.namespace, "qdisc", "add", "dev", side.device, "root", "tbf", *rate)
    _run(
        *(*ip, "route", "replace", other.address, "dev", side.device),
        *("src", side.address, "congctl", CONGESTION_CONTROL),
    )


def _check() -> None:
    if os.geteuid() != 0:
        raise NetworkError("network namespaces need root: run this bench as root")
    if not TUN.exists():
        raise NetworkError(f"there is no {TUN}: load the kernel's module tun")
    for program in ("ip", "tc"):
        if shutil.which(program) is None:
            raise NetworkError(f"{program} is missing: install the package iproute2")


def _set_namespace(descriptor: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)  # os.setns came with Python 3.12
    if libc.setns(descriptor, CLONE_NEWNET):
        number = ctypes.get_errno()
        raise NetworkError(f"a network namespace cannot be entered: {os.strerror(number)}")


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise NetworkError(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout
