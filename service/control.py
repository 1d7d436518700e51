"""What supervisor and worker say to each other, over a socket that keeps messages apart (SOCK_SEQPACKET).

To the worker: `CONNECTION` with a file descriptor, `DRAIN`, `STOP`. To the supervisor: `READY` once, then `ADOPTED` and
a number whenever so many connections have been taken, `DONE` and a number whenever so many have ended.

The fork server is sent the number of a worker, a note and the worker's end of such a socket; it says `FORKED` and
`ENDED`, each with that number and one more, the process id and the exit code.
"""

import socket

CONNECTION = b"c"
DRAIN = b"d"
STOP = b"s"
READY = b"r"
ADOPTED = b"a"
DONE = b"n"
FORKED = b"f"
ENDED = b"e"

_MESSAGE_BYTES = 4_096


def pair() -> tuple[socket.socket, socket.socket]:
    """Return both ends, neither of which ever blocks."""
    ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for end in ends:
        end.setblocking(False)
    return ends


def receive(end: socket.socket) -> tuple[bytes, list[int]] | None:
    """Return the next message and the descriptors that came with it; None when the other side is gone.

    Raises:
        BlockingIOError: There is no message yet.
    """
    try:
        message, descriptors, _, _ = socket.recv_fds(end, _MESSAGE_BYTES, 1)
    except ConnectionError:
        return None
    return (message, list(descriptors)) if message else None


def pass_on(end: socket.socket, connection: socket.socket) -> None:
    """Hand a connection over; the other side gets a descriptor of its own.

    Raises:
        BlockingIOError: The other side is behind with its messages.
        OSError: The other side is gone.
    """
    socket.send_fds(end, [CONNECTION], [connection.fileno()])
