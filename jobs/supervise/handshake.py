"""The handshake of two supervisors that do not trust each other yet, and the messages that follow.

Both sides prove that they know the same key, with messages of fixed length that need no parsing; every
message after that carries a MAC (`Connection`).
"""

from __future__ import annotations

import hmac
import json
import secrets
import socket
import struct
import time
from dataclasses import dataclass
from typing import Any

HANDSHAKE_SECONDS = 3.0

NONCE = 32
MAC = 32
HELLO = b"baton-rendezvous-2\n"
LONGEST = 1 << 26


class Connection:
    """Messages over a socket between two sides that have proved that they know the same key.

    Each consists of its length (4 bytes, big endian), its content, and the HMAC-SHA256, under the sender's
    key, of its number on this connection (8 bytes), its length and its content.
    """

    def __init__(self, sock: socket.socket, mine: bytes, theirs: bytes, received: bytes = b"") -> None:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        self.socket = sock
        self._keys = (mine, theirs)
        self._sent = self._read = 0
        self._buffer = bytearray(received)

    def fileno(self) -> int:
        return self.socket.fileno()

    def send(self, message: dict[str, Any]) -> bool:
        """Sends a message. False if the other end is gone, or has not read for a long time."""
        return self.send_bytes(json.dumps(message, separators=(",", ":")).encode(), HANDSHAKE_SECONDS)

    def send_bytes(self, content: bytes, seconds: float) -> bool:
        """As `send`. Raises ValueError for more than 64 MiB."""
        if len(content) > LONGEST:
            raise ValueError(f"a message of {len(content)} bytes; at most {LONGEST} are allowed")
        head = struct.pack(">I", len(content))
        mac = mac_of(self._keys[0], struct.pack(">Q", self._sent), head, content)
        self._sent += 1
        try:
            self.socket.settimeout(seconds)
            self.socket.sendall(head + content + mac)
        except OSError:
            return False
        return True

    def receive(self, one: bool = False) -> list[dict[str, Any]] | None:
        """The messages received, possibly none; None if the other end is gone or sends anything invalid.

        Call it when the socket is readable, or let it wait for the socket's timeout. `one`: leaves whatever
        follows the first message in the socket.
        """
        contents = self.receive_bytes(one)
        if contents is None:
            return None
        try:
            messages = [json.loads(content) for content in contents]
        except (ValueError, RecursionError):
            return None
        return messages if all(isinstance(message, dict) for message in messages) else None

    def receive_bytes(self, one: bool = False) -> list[bytes] | None:
        """As `receive`, but returns the raw contents."""
        try:
            data = self.socket.recv(self._end() - len(self._buffer) if one else 1 << 16)
        except (TimeoutError, BlockingIOError):
            return []
        except OSError:
            return None
        if not data:
            return None
        self._buffer += data
        return self.take()

    def take(self) -> list[bytes] | None:
        """The contents of the messages that are complete so far; None if a MAC is wrong."""
        contents = []
        while 4 < (end := self._end()) <= len(self._buffer):
            head, content, mac = (
                bytes(self._buffer[a:b]) for a, b in ((0, 4), (4, end - MAC), (end - MAC, end))
            )
            right = mac_of(self._keys[1], struct.pack(">Q", self._read), head, content)
            if not hmac.compare_digest(mac, right):
                return None
            self._read += 1
            del self._buffer[:end]
            contents.append(content)
        return contents if self._end() <= 4 + LONGEST + MAC else None

    def _end(self) -> int:
        """Where the first message ends in the buffer; 4, the end of its length, until that is complete."""
        if len(self._buffer) < 4:
            return 4
        return int(4 + struct.unpack_from(">I", self._buffer)[0] + MAC)

    def close(self) -> None:
        self.socket.close()


def mac_of(key: bytes, *parts: bytes) -> bytes:
    return hmac.digest(key, b"".join(parts), "sha256")


@dataclass
class Shake:
    """What is derived from the key and both nonces."""

    key: bytes
    nonces: bytes

    def proof(self, of_rank_0: bool) -> bytes:
        return mac_of(self.key, b"rank 0 knows" if of_rank_0 else b"guest knows ", self.nonces)

    def connection(self, sock: socket.socket, as_rank_0: bool, received: bytes = b"") -> Connection:
        down = mac_of(self.key, b"from rank 0 ", self.nonces)
        up = mac_of(self.key, b"from a guest", self.nonces)
        return Connection(sock, down, up, received) if as_rank_0 else Connection(sock, up, down, received)


@dataclass
class Guest:
    """A connection that has not yet proved that it knows the key, or not yet said which rank it is."""

    socket: socket.socket
    until: float
    received: bytes = b""
    shake: Shake | None = None
    connection: Connection | None = None

    def fileno(self) -> int:
        return self.socket.fileno()

    def go_on(self, key: bytes) -> list[bytes] | None:
        """One step: returns the messages since its proof, possibly none; None if it must be dismissed."""
        if self.connection:
            return self.connection.receive_bytes()
        try:
            data = self.socket.recv(512)
        except BlockingIOError:
            return []
        except OSError:
            return None
        self.received += data
        if not data or not self._shake_hands(key):
            return None
        return self.connection.take() if self.connection else []

    def _shake_hands(self, key: bytes) -> bool:
        """Whether what has been received so far is a valid beginning of a guest's part of the handshake."""
        if self.shake is None:
            hello = len(HELLO) + NONCE
            if not self.received.startswith(HELLO[: len(self.received)]):
                return False
            if len(self.received) < hello:
                return True
            mine = secrets.token_bytes(NONCE)
            self.shake = Shake(key, self.received[len(HELLO) : hello] + mine)
            self.received = self.received[hello:]
            try:
                self.socket.sendall(mine + self.shake.proof(of_rank_0=True))
            except OSError:
                return False
        if len(self.received) >= MAC:
            proof, rest = self.received[:MAC], self.received[MAC:]
            if not hmac.compare_digest(proof, self.shake.proof(of_rank_0=False)):
                return False
            self.connection = self.shake.connection(self.socket, as_rank_0=True, received=rest)
        return True


def shake_hands(sock: socket.socket, key: bytes) -> Connection | None:
    """A guest's side: the connection, if the other end knows the key and has seen that we do; else None."""
    mine = secrets.token_bytes(NONCE)
    try:
        sock.sendall(HELLO + mine)
        answer = read_exactly(sock, NONCE + MAC)
        shake = Shake(key, mine + answer[:NONCE])
        if not hmac.compare_digest(answer[NONCE:], shake.proof(of_rank_0=True)):
            return None
        sock.sendall(shake.proof(of_rank_0=False))
    except OSError:
        return None
    return shake.connection(sock, as_rank_0=False)


def read_exactly(sock: socket.socket, length: int) -> bytes:
    """Reads `length` bytes. Raises OSError if they do not arrive within the time of a handshake."""
    until, data = time.monotonic() + HANDSHAKE_SECONDS, b""
    while len(data) < length:
        sock.settimeout(max(until - time.monotonic(), 0.001))
        part = sock.recv(length - len(data))
        if not part:
            raise ConnectionError("closed")
        data += part
    return data
