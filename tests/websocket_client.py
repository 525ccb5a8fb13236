"""A WebSocket client as small as can be; it can play dead."""

import json
import socket
from urllib.parse import urlsplit

from wsproto import ConnectionType, WSConnection
from wsproto.connection import ConnectionState
from wsproto.events import AcceptConnection, CloseConnection, Ping, RejectConnection, Request, TextMessage


class Client:
    """One connection to a running server."""

    def __init__(
        self, url: str, headers: dict[str, str] | None = None, timeout: float = 60, alive: bool = True
    ):
        self.alive = alive  # whether it answers pings
        parts = urlsplit(url)
        self.socket = socket.create_connection((parts.hostname, parts.port), timeout)
        self.wire, self.text = WSConnection(ConnectionType.CLIENT), ""
        self.events, self.closed = [], None
        target = f"{parts.path}?{parts.query}" if parts.query else parts.path
        extra = [(name.encode(), value.encode()) for name, value in (headers or {}).items()]
        self.socket.sendall(self.wire.send(Request(host=parts.netloc, target=target, extra_headers=extra)))
        first = self._next()
        if isinstance(first, RejectConnection):
            raise ConnectionRefusedError(first.status_code)
        assert isinstance(first, AcceptConnection), first

    def _next(self):
        while not self.events:
            data = self.socket.recv(65536)
            self.wire.receive_data(data or None)
            self.events = list(self.wire.events())
            if not data and not self.events:
                return CloseConnection(1006)
        return self.events.pop(0)

    def send(self, **frame) -> None:
        """Send a frame of JSON."""
        self.socket.sendall(self.wire.send(TextMessage(json.dumps(frame))))

    def receive(self) -> dict | None:
        """The next frame; None when the server has closed, with the code in `closed`."""
        while True:
            event = self._next()
            if isinstance(event, TextMessage):
                self.text += event.data
                if event.message_finished:
                    text, self.text = self.text, ""
                    return json.loads(text)
            elif isinstance(event, CloseConnection):
                self.closed = event.code
                return None
            else:
                assert isinstance(event, Ping), event
                if self.alive and self.wire.state is ConnectionState.OPEN:  # nothing is said behind a goodbye
                    self.socket.sendall(self.wire.send(event.response()))

    def close(self) -> int:
        """Say goodbye; the code with which the server answers."""
        self.socket.sendall(self.wire.send(CloseConnection(1000)))
        while self.receive() is not None:
            pass
        self.socket.close()
        return self.closed

    def drop(self) -> None:
        """Be gone without a word."""
        self.socket.close()
