"""The suite runs with no way out of this machine, children included."""

import os
import socket
import subprocess
import sys

import pytest

MODE = os.environ.get("MONGARS_TEST_OFFLINE")
CHILD = """
import socket
print([name for _, name in socket.if_nameindex()])
try:
    socket.getaddrinfo("mongars.invalid", 80)
except OSError as error:
    print(type(error).__name__)
"""


@pytest.mark.skipif(MODE is None, reason="run by `make test`, which takes the network away")
def test_a_child_process_has_no_way_out():
    said = subprocess.run(
        [sys.executable, "-c", CHILD], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    if MODE == "namespace":
        assert said[0] == "['lo']"
    assert said[1] == ("gaierror" if MODE == "namespace" else "ConnectionRefusedError")


def test_the_guard_refuses_what_leaves_the_machine_and_nothing_else():
    guard = os.path.join(os.path.dirname(__file__), "guard")
    with socket.create_server(("127.0.0.1", 0)) as server:
        code = (
            f"import socket; socket.create_connection(('127.0.0.1', {server.getsockname()[1]}))\n"
            "try: socket.getaddrinfo('mongars.invalid', 80)\n"
            "except ConnectionRefusedError as error: print('refused', error)"
        )
        environment = {**os.environ, "PYTHONPATH": guard}
        said = subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
        )
    assert said.stdout.startswith("refused") and "mongars.invalid" in said.stdout
