"""How a listening socket ends without resetting anybody.

Closing one resets the connections that the kernel has taken and nobody has accepted: clients for which the handshake is
over, and whose request is on its way. So the kernel is first told to ignore further attempts; when the last handshakes
are over and accepted, nothing is left that closing could reset. Who tries meanwhile tries again a second later, as TCP
does, and is refused.
"""

import asyncio
import contextlib
import ctypes
import os
import socket
import struct
import sys

# socket(7); Python has no name for it.
_SO_ATTACH_FILTER = 26
# Classic BPF over the TCP header, each step a struct sock_filter: code, two jumps, operand (linux/filter.h).
_STEPS = (
    (0x30, 0, 0, 13),  # load the byte of the flags
    (0x45, 0, 1, 0x02),  # does it have SYN?
    (0x06, 0, 0, 0),  # yes: as if it had never come
    (0x06, 0, 0, 0xFFFFFFFF),  # no: all of it
)


def ignore_newcomers(server: asyncio.Server) -> None:
    """Let `server` accept what has begun to connect, and nobody else; where the kernel knows no filters, nothing."""
    if sys.platform != "linux":
        return
    steps = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in _STEPS))
    program = struct.pack("HP", len(_STEPS), ctypes.addressof(steps))  # struct sock_fprog
    for listening in server.sockets:
        # uvloop's own object sets no options.
        with contextlib.suppress(OSError), socket.socket(fileno=os.dup(listening.fileno())) as same:
            same.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, program)
