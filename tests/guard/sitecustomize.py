"""Refuses connections and name look-ups off this machine, in every Python process that has this folder on its path."""

import ipaddress
import socket
import sys


def _refuse_outside(event: str, arguments: tuple) -> None:
    if event == "socket.connect" and isinstance(arguments[1], tuple):
        host = arguments[1][0]
    elif event == "socket.getaddrinfo":
        host = arguments[0]
    else:
        return
    host = host.decode() if isinstance(host, bytes) else host
    if host in (None, "", "localhost", socket.gethostname()):
        return
    try:
        if ipaddress.ip_address(host.partition("%")[0]).is_loopback or host in ("0.0.0.0", "::"):
            return
    except ValueError:
        pass
    raise ConnectionRefusedError(f"the tests stay on this machine; something wanted {host!r}")


sys.addaudithook(_refuse_outside)
