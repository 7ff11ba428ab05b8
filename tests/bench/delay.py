"""The length of a link: a program that hands packets from one tun device to another, but later.

    python -m tests.bench.delay SECONDS NAME NAME

    device A ──► read ──► held for SECONDS ──► written ──► device B       (and the other way round)

It makes the two devices, says so on standard output, and hands packets over until it is ended; the
devices go with it. How many bytes wait here is bounded by the rate at which the devices give them.

The devices take segments as the kernel's TCP makes them, with the header that says how to cut them
(as those of virtual machines do): one packet of 1500 bytes at a time would cost most of a CPU.

Source: Linux: Documentation/networking/tuntap.rst, include/uapi/linux/if_tun.h, virtio_net.h.
"""

from __future__ import annotations

import fcntl
import os
import select
import struct
import sys
import time
from collections import deque
from contextlib import suppress
from typing import Final

TUNSETIFF, TUNSETOFFLOAD = 0x400454CA, 0x400454D0
IFF_TUN, IFF_NO_PI, IFF_VNET_HDR = 0x0001, 0x1000, 0x4000
TUN_F_CSUM, TUN_F_TSO4 = 0x01, 0x02
LARGEST: Final = 65536 + 64
"""Bytes of the largest segment with its header."""
REAL_TIME: Final = os.sched_param(1)
"""A packet that waits for a CPU would be late; who holds packets takes little of one."""

Held = deque[tuple[float, bytes]]
"""Packets with the time at which they go on, in its order."""


def main() -> int:
    seconds, *names = sys.argv[1:]
    with suppress(OSError):  # not in every container
        os.sched_setscheduler(0, os.SCHED_RR, REAL_TIME)
    devices = [make_device(name) for name in names]
    print("ready", flush=True)
    with suppress(KeyboardInterrupt):
        hand_over(devices[0], devices[1], float(seconds))
    return 0


def make_device(name: str) -> int:
    """Return an open tun device of that name, which lives for as long as it is open."""
    device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    flags = IFF_TUN | IFF_NO_PI | IFF_VNET_HDR
    fcntl.ioctl(device, TUNSETIFF, struct.pack("16sH22x", name.encode(), flags))
    fcntl.ioctl(device, TUNSETOFFLOAD, TUN_F_CSUM | TUN_F_TSO4)
    return device


def hand_over(one: int, other: int, seconds: float) -> None:
    """Hand packets over, each that long after it came, for ever."""
    held: dict[int, Held] = {one: deque(), other: deque()}
    """By the device that they leave to."""
    far_end = {one: other, other: one}
    while True:
        firsts = [queue[0][0] for queue in held.values() if queue]
        wait = max(0.0, min(firsts) - time.monotonic()) if firsts else None
        readable, _, _ = select.select((one, other), (), (), wait)
        for device in readable:
            take_all(device, held[far_end[device]], seconds)
        for device, queue in held.items():
            release_due(device, queue)


def take_all(device: int, queue: Held, seconds: float) -> None:
    with suppress(BlockingIOError):
        while True:
            packet = os.read(device, LARGEST)
            queue.append((time.monotonic() + seconds, packet))


def release_due(device: int, queue: Held) -> None:
    while queue and queue[0][0] <= time.monotonic():
        with suppress(OSError):  # not up yet, or full: a packet is lost, as on any link
            os.write(device, queue[0][1])
        queue.popleft()


if __name__ == "__main__":
    sys.exit(main())
