"""How a house stands load and faults: `python -m load` in the folder `tests`, or `make load` for the long run.

Everything stays on the loopback address. The figures are printed as JSON; whatever should not be stands under `wrong`,
and then the exit code is 1.
"""

import asyncio
import json
import sys
import time
from typing import Annotated

import typer

from load import faults as broken
from load import phases
from load.stand import Stand

LONG = {
    "rest": 100,
    "capacity": 60,
    "half": 600,
    "twice": 60,
    "cycles": 1000,
    "connections": 200,
    "people": 50,
}
SHORT = {"rest": 20, "capacity": 9, "half": 15, "twice": 8, "cycles": 100, "connections": 40, "people": 10}
app = typer.Typer(add_completion=False, help=__doc__)
Short = Annotated[bool, typer.Option(help="a minute instead of a quarter of an hour")]


@app.command()
def load(short: Short = False, by: str = "bentoml", half: float = 0) -> None:
    """Capacity, then half of it for long, then twice as much, then WebSockets that come and go."""
    size = SHORT if short else LONG
    finish(asyncio.run(all_phases(size | ({"half": half} if half else {}), by)))


@app.command()
def faults(short: Short = False) -> None:
    """What breaks while people talk: database, disk, clock, model, process."""
    people, times = (6, 3) if short else (12, 50)
    finish(asyncio.run(broken.all_faults(say, people, times, not short)))


async def all_phases(size: dict, by: str) -> dict:
    """Each phase after the other on one house."""
    with Stand(by) as stand:
        people = stand.people(size["people"])
        say(rest := await phases.unloaded(stand, people[:1], size["rest"]), "unloaded, ms")
        people = people[1:]
        say(most := await phases.capacity(stand, people, size["capacity"]), "capacity")
        rate = most["per_second"]
        found = {"unloaded_ms": rest, "capacity": most}
        # the record of each phase must hold only its own messages: everybody begins anew
        for name, phase in {
            "half": lambda who: phases.half(stand, who, size["connections"], rate / 2, size["half"], rest),
            "twice": lambda who: phases.twice(stand, who, size["connections"], rate, size["twice"], rest),
            "sockets": lambda who: phases.sockets(stand, who, size["cycles"]),
        }.items():
            people = stand.people(size["people"], name)
            say(made := await phase(people), name)
            found[name] = made
        return found


def say(what: dict, name: str) -> None:
    """Tell how it goes."""
    print(f"{time.strftime('%H:%M:%S')} {name}: {json.dumps(what)}", file=sys.stderr, flush=True)


def finish(found: dict) -> None:
    """Print what was found; 1 if something is wrong."""
    print(json.dumps(found, indent=2))
    wrong = [f"{name}: {each}" for name, phase in found.items() for each in phase.get("wrong", [])]
    if wrong:
        print("\n".join(["", "WRONG:", *wrong]), file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    app()
