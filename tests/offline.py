"""Run a command with no way out of this machine: `python tests/offline.py -- COMMAND …`.

On Linux the command gets a network namespace of its own with nothing but a loopback interface, so neither it nor any
child of it can reach anything else. Where the system allows no namespace, every Python process of it refuses to connect
or to look up a name off this machine instead (tests/guard/sitecustomize.py), and this is said.
"""

import ctypes
import fcntl
import os
import socket
import struct
import sys
from pathlib import Path

CLONE_NEWNET, CLONE_NEWUSER = 0x40000000, 0x10000000
SIOCGIFFLAGS, SIOCSIFFLAGS, IFF_UP = 0x8913, 0x8914, 0x1


def leave_the_network() -> bool:
    """Move this process into an empty network namespace with its loopback up; False where that is not allowed."""
    if not sys.platform.startswith("linux"):
        return False
    unshare = ctypes.CDLL(None, use_errno=True).unshare
    user, group = os.getuid(), os.getgid()
    if unshare(CLONE_NEWNET) != 0:
        if unshare(CLONE_NEWUSER | CLONE_NEWNET) != 0:
            return False
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"{user} {user} 1")
        Path("/proc/self/gid_map").write_text(f"{group} {group} 1")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        request = struct.pack("16sh14x", b"lo", 0)
        flags = struct.unpack("16sh14x", fcntl.ioctl(control, SIOCGIFFLAGS, request))[1]
        fcntl.ioctl(control, SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", flags | IFF_UP))
    return True


def can_leave() -> bool:
    """Whether this system allows it all the way: tried in a child, because half a step cannot be taken back."""
    child = os.fork()
    if child == 0:
        try:
            os._exit(0 if leave_the_network() else 1)
        except OSError:
            os._exit(1)
    return os.waitpid(child, 0)[1] == 0


def main() -> None:
    command = sys.argv[sys.argv.index("--") + 1 :]
    if can_leave() and leave_the_network():
        os.environ["MONGARS_TEST_OFFLINE"] = "namespace"
    else:
        print(
            "offline: no network namespace is allowed here; Python processes are guarded instead",
            file=sys.stderr,
        )
        os.environ["MONGARS_TEST_OFFLINE"] = "guard"
        guard = str(Path(__file__).parent / "guard")
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [guard, os.environ.get("PYTHONPATH")]))
    os.execvp(command[0], command)


if __name__ == "__main__":
    main()
