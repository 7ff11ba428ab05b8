"""The credentials of the process at the other end of a Unix socket, as the kernel gives them."""

from __future__ import annotations

import os
import socket
import struct
from dataclasses import dataclass

_SO_PEERGROUPS = 59
"""Linux 4.13, asm-generic/socket.h. Python has no name for it."""
_MAX_GROUPS = 256
"""Python reads at most 1024 bytes. If a peer has more groups, only its primary group counts."""


@dataclass(frozen=True, slots=True)
class Peer:
    """Credentials of a process at the moment it connected."""

    pid: int
    uid: int
    gids: frozenset[int]
    """Primary group and all others."""


def peer_of(descriptor: int) -> Peer:
    """Return the credentials of the peer.

    Args:
        descriptor: Descriptor of the connected socket. Not the socket itself: the one that an event
            loop shows does not have `getsockopt` in every loop.

    Raises:
        OSError: the descriptor is not a connected Unix socket.

    Source: unix(7) and socket(7), SO_PEERCRED and SO_PEERGROUPS.
    """
    with socket.socket(fileno=os.dup(descriptor)) as connection:
        credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        pid, uid, gid = struct.unpack("3I", credentials)
        try:
            groups = connection.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, 4 * _MAX_GROUPS)
        except OSError:
            groups = b""  # an older kernel, or too many groups
    return Peer(pid, uid, frozenset({gid, *struct.unpack(f"{len(groups) // 4}I", groups)}))


def is_allowed(peer: Peer, *, own_uid: int, group: int) -> bool:
    """Return whether a peer may give commands.

    The mode of the socket already excludes others. This check also holds after a chmod of the
    socket, and for a connection that a process has passed on.
    """
    return peer.uid in {0, own_uid} or group in peer.gids
