"""A TCP proxy in the test's own process that holds, delays or drops what passes through it."""

from __future__ import annotations

import contextlib
import socket
import threading
import time


class Proxy:
    """Forwards connections to a port on this host. Change its fields while it runs."""

    def __init__(self, target_port: int, *, host: str = "127.0.0.1") -> None:
        """`host`: the address at which it listens."""
        self.target_port = target_port
        #: Seconds for which every message from the client is held.
        self.delay_seconds = 0.0
        #: Whether nothing is forwarded any more, either way, and no connection is closed: a partition.
        self.cut = False
        #: How many messages came from clients.
        self.messages = 0
        self._stop = threading.Event()
        self._listener = socket.create_server((host, 0))
        self._listener.settimeout(0.2)
        self.port = int(self._listener.getsockname()[1])
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End it and its connections."""
        self._stop.set()
        self._thread.join(5)
        self._listener.close()

    def _accept(self) -> None:
        while not self._stop.is_set():
            with contextlib.suppress(TimeoutError):
                client, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client:
            while self.cut and not self._stop.is_set():
                time.sleep(0.05)
            try:
                server = socket.create_connection(("127.0.0.1", self.target_port), 5)
            except OSError:
                return
            with server:
                back = threading.Thread(target=self._pump, args=(server, client, False), daemon=True)
                back.start()
                self._pump(client, server, True)
                back.join(10)

    def _pump(self, source: socket.socket, sink: socket.socket, hold: bool) -> None:
        source.settimeout(0.2)
        while not self._stop.is_set():
            try:
                data = source.recv(65536)
            except TimeoutError:
                continue
            except OSError:
                break
            if hold and data:
                self.messages += 1
            if hold and self.delay_seconds:
                self._stop.wait(self.delay_seconds)
            while self.cut and not self._stop.is_set():
                time.sleep(0.05)
            try:
                if not data:
                    break
                sink.settimeout(10)
                sink.sendall(data)
            except OSError:
                break
        for sock in (source, sink):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
