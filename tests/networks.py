"""Network namespaces, in which packets are really dropped; only root may make them."""

from __future__ import annotations

import os
import subprocess

from faults import missing


class Network:
    """A network namespace with two cables to this one: one to the database, and one on which its server is asked."""

    def __init__(self, ip: str, number: int) -> None:
        self._ip = ip
        self._name = f"rg{os.getpid()}n{number}"
        if os.geteuid() != 0:
            missing("only root may make a network namespace")
        self._run("netns", "add", self._name)
        #: Routes of this host's that are to be removed.
        self._more: list[str] = []
        self.prefix = (ip, "netns", "exec", self._name)
        self.database, self._source = self._cable(f"{self._name}d", 2 * number)
        _, self.server = self._cable(f"{self._name}s", 2 * number + 1)

    def cut(self) -> None:
        """Nothing passes to or from the database, and nobody is told."""
        self._run("link", "set", f"{self._name}d", "down")

    def cut_replies(self) -> None:
        """What is sent to the database arrives there, and no answer comes back."""
        self._run("route", "add", "blackhole", f"{self._source}/32")

    def two_addresses(self) -> tuple[str, str]:
        """Addresses behind the database's cable: packets to the first vanish, and the second is this host's."""
        nowhere, somewhere = "169.254.214.1", "169.254.214.2"
        self._run("addr", "add", f"{somewhere}/32", "dev", f"{self._name}d")
        self._run("route", "add", "blackhole", f"{nowhere}/32")
        self._more.append(f"{nowhere}/32")
        for address in (nowhere, somewhere):
            self._run("-n", self._name, "route", "add", f"{address}/32", "via", self.database)
        return nowhere, somewhere

    def heal(self) -> None:
        """Undo either."""
        self._run("link", "set", f"{self._name}d", "up")
        subprocess.run([self._ip, "route", "del", "blackhole", f"{self._source}/32"], stderr=subprocess.DEVNULL)

    def close(self) -> None:
        """Remove it, and its cables with it."""
        self.heal()
        for route in self._more:
            self._run("route", "del", "blackhole", route)
        for cable in "ds":
            self._run("link", "del", f"{self._name}{cable}")
        self._run("netns", "del", self._name)

    def _cable(self, name: str, number: int) -> tuple[str, str]:
        """The addresses of its near and its far end."""
        near, far = (f"169.254.213.{4 * number + end}" for end in (1, 2))
        self._run("link", "add", name, "type", "veth", "peer", "name", f"{name}x", "netns", self._name)
        self._run("addr", "add", f"{near}/30", "dev", name)
        self._run("link", "set", name, "up")
        self._run("-n", self._name, "addr", "add", f"{far}/30", "dev", f"{name}x")
        self._run("-n", self._name, "link", "set", f"{name}x", "up")
        return near, far

    def _run(self, *arguments: str) -> None:
        subprocess.run([self._ip, *arguments], check=True)
