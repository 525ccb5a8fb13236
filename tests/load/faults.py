"""What a house does when something breaks under load: the database is held, the disk is full, the clock goes back, the
model breaks off, the process is killed. People insist: whoever got no answer asks again with the same key."""

import asyncio
import contextlib
import os
import random
import resource
import sqlite3
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

from load.stand import Stand
from load.turns import Turn
from load.visitors import BROKEN, Client, Diary, Line, Person

CALM = {
    200,
    409,
    429,
    503,
}  # what a house may say while something is broken, and never with 200 what is not so


class Crowd:
    """People who chat without end, each by one of the three ways, and look back now and then."""

    def __init__(
        self,
        stand: Stand,
        people: list[Person],
        mark: str,
        wishes: tuple[str, ...] = ("",),
        insist: bool = True,
    ):
        self.stand, self.people, self.mark, self.wishes, self.insist = stand, people, mark, wishes, insist
        self.diary, self.dice = Diary(), random.Random(7)
        self.endings: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.longest = 0.0
        self.leaving = asyncio.Event()

    async def during(self, what: Callable[[], Awaitable[None]], around: float) -> dict:
        """Let them talk while something happens, and so many seconds before and after; what they saw."""
        tasks = [asyncio.create_task(self.visit(n, person)) for n, person in enumerate(self.people)]
        await asyncio.sleep(around)
        await what()
        await asyncio.sleep(around)
        self.leaving.set()
        await asyncio.wait_for(asyncio.gather(*tasks), 120)
        self.wrong += await self.stand.wrong(self.people, self.diary.turns)
        with contextlib.closing(sqlite3.connect(self.stand.database)) as database:
            if (sound := database.execute("PRAGMA integrity_check").fetchall()) != [("ok",)]:
                self.wrong.append(f"the database is broken: {sound}")
        if "Traceback" in self.stand.server.log:
            self.wrong += defects(self.stand.server.log)
        turns = self.diary.turns
        return {
            "turns": len(turns), "answered": sum(turn.ended == "done" for turn in turns),
            "asked_again": sum(turn.tries > 1 for turn in turns), "endings": dict(sorted(self.endings.items())),
            "longest_seconds": round(self.longest, 1), "wrong": self.wrong[:20],
        }  # fmt: skip

    async def visit(self, n: int, person: Person) -> None:
        """One of them: says something, insists on an answer, thinks, goes on."""
        client = Client(self.stand.url, person)
        way = ("json", "stream", "socket")[n % 3]
        while not self.leaving.is_set():
            turn = self.diary.turn(person, self.mark, self.dice.choice(self.wishes), self.dice)
            while await self.attempt(client, turn, way) != "done" and self.insist and turn.tries < 2000:
                await asyncio.sleep(0.2)
            await self.look(client)
            await asyncio.sleep(self.dice.uniform(0, 0.1))
        await client.close()
        if person.socket is not None:
            await person.socket.close()
            person.socket = None

    async def attempt(self, client: Client, turn: Turn, way: str) -> str:
        """Say it once; how it ended."""
        began = time.monotonic()
        if way == "socket":
            try:
                line = await Line.of(self.stand.url, client.person)
            except (*BROKEN, TypeError):  # refused, or gone before it said anything
                self.endings["not there"] += 1
                return "not there"
            await line.say(turn)
        else:
            await client.say(turn, way == "stream", going_on=False)
        self.longest = max(self.longest, time.monotonic() - began)
        told = f"{turn.ended} {turn.status}" if turn.ended in ("refused", "error") else turn.ended
        self.endings[told] += 1
        if turn.ended == "silent" or turn.ended in ("refused", "error") and turn.status not in CALM:
            self.wrong.append(f"{way} {told}: {turn}")
        return turn.ended

    async def look(self, client: Client) -> None:
        """Read the history: it is there, or one is told to come back."""
        try:
            status, wait, _ = await client.read("/api/v1/conversation/history", limit=5)
        except BROKEN:
            status, wait = 0, None
        self.endings[f"history {status or 'broken'}"] += 1
        if status not in CALM | {0} or status == 503 and not wait:
            self.wrong.append(f"history: {status}, Retry-After {wait}")


def defects(log: str) -> list[str]:
    """The last lines of the tracebacks in a log that are no failure of what was broken on purpose."""
    ends = [
        line
        for line in log.splitlines()
        if line and line[0].isalpha() and ("Error" in line or "Exception" in line)
    ]
    meant = (
        "mongars.base.errors.",
        "sqlalchemy.exc.",
        "sqlite3.",
        "httpx.",
        "httpcore.",
        "OSError",
        "Traceback",
    )
    return [
        f"in the log: {line[:200]}"
        for line in ends
        if not line.startswith(meant) and ": NotReady (" not in line
    ][:5]


async def locked(stand: Stand, people: list[Person], seconds: float = 5, around: float = 2) -> dict:
    """Another process holds the database for itself, so many seconds; people talk so long before and after."""

    async def hold() -> None:
        with contextlib.closing(sqlite3.connect(stand.database, isolation_level=None, timeout=30)) as other:
            other.execute("BEGIN EXCLUSIVE")
            await asyncio.sleep(seconds)
            other.execute("ROLLBACK")

    return await Crowd(stand, people, "Lock").during(hold, around)


async def full(stand: Stand, people: list[Person], seconds: float = 5, around: float = 2) -> dict:
    """The file system of the home has no room left (the stand is on a small one)."""
    ballast = stand.home / "ballast"

    async def fill() -> None:
        with open(ballast, "wb", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(b"x" * 4096)
        await asyncio.sleep(seconds)
        ballast.unlink()

    return await Crowd(stand, people, "Room").during(fill, around)


async def unwritable(stand: Stand, people: list[Person], seconds: float = 5, around: float = 2) -> dict:
    """Whatever the server writes beyond 4 kB into a file fails, as on a disk that breaks (RLIMIT_FSIZE)."""
    pid = stand.server.process.pid

    async def forbid() -> None:
        soft, hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (4096, hard))
        await asyncio.sleep(seconds)
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (soft, hard))

    return await Crowd(stand, people, "Disk").during(forbid, around)


async def clock_back(stand: Stand, people: list[Person], seconds: float = 2, around: float = 2) -> dict:
    """The clock goes back by an hour, then by a day, then is right again; so many seconds each."""
    shift, guest, wrong = Path(stand.server.environment["TEST_CLOCK_SHIFT"]), people[0], []

    async def turn_back() -> None:
        await fail_to_sign_in(stand, guest)
        for back in (-3600, -86400, 0):
            shift.with_suffix(".new").write_text(str(back))
            os.replace(shift.with_suffix(".new"), shift)
            if back and not await can_sign_in(stand, guest):
                wrong.append(f"after {back} s nobody could sign in")
            await asyncio.sleep(seconds)

    found = await Crowd(stand, people, "Time").during(turn_back, around)
    return found | {"wrong": found["wrong"] + wrong}


async def fail_to_sign_in(stand: Stand, person: Person) -> None:
    """Ten wrong passwords: no more are taken for a minute."""
    client = Client(stand.url, replace(person, password="wrong horse"))
    statuses = [(await client.sign_in())[0] for _ in range(11)]
    await client.close()
    assert statuses[-1] == 429, statuses


async def can_sign_in(stand: Stand, person: Person) -> bool:
    """Whether a password opens the house, and what it gives is good for a request."""
    client = Client(stand.url, person)
    form = {"username": person.name, "password": person.password}
    async with client.session.post("/token", data=form) as answer:
        token = (await answer.json()).get("access_token")
    async with client.session.get("/api/v1/user/me", headers={"Authorization": f"Bearer {token}"}) as answer:
        status = answer.status
    await client.close()
    return status == 200


async def model_breaks(stand: Stand, people: list[Person], seconds: float = 10) -> dict:
    """The model ends the connection in mid-stream, says that it failed, or answers as it should."""
    wishes = ("", " [break=3]", " [error=3]")
    crowd = Crowd(stand, people, "Model", wishes, insist=False)
    found = await crowd.during(lambda: asyncio.sleep(seconds), 0)
    good = [turn for turn in crowd.diary.turns if "=3]" in turn.text and turn.ended == "done"]
    return found | {"wrong": found["wrong"] + [f"answered by a broken model: {turn}" for turn in good]}


async def kills(stand: Stand, people: list[Person], times: int, around: float = 1, most: float = 3) -> dict:
    """`kill -9` in the middle of everything, after at `most` so many seconds, and a new start, again and again."""
    dice, starts = random.Random(11), []

    async def kill() -> None:
        for _ in range(times):
            await asyncio.sleep(dice.uniform(0.1, most))
            stand.server.kill()
            began = time.monotonic()
            await asyncio.to_thread(stand.server.start)
            starts.append(time.monotonic() - began)

    wishes = ("", " [pause=0.01]", " [pause=0.03]")
    found = await Crowd(stand, people, "Kill", wishes).during(kill, around)
    found["wrong"] += ["nothing was answered"] * (found["answered"] < times)
    return found | {"kills": times, "start_seconds": round(sorted(starts)[len(starts) // 2], 2)}


@contextlib.contextmanager
def small_disk(megabytes: int = 64):
    """A folder on a file system of its own; None, with the reason, where this process may not mount one."""
    with tempfile.TemporaryDirectory(prefix="mongars-full-") as folder:
        command = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m,mode=700", "mongars-test", folder]
        made = subprocess.run(command, capture_output=True, text=True)
        if made.returncode:
            yield None, made.stderr.strip()
            return
        try:
            yield Path(folder), ""
        finally:
            subprocess.run(["umount", folder], check=True)


async def all_faults(say: Callable[[dict, str], None], people: int, times: int, long: bool) -> dict:
    """Each fault after the other."""
    tried = {
        "locked": locked,
        "model breaks": model_breaks,
        "unwritable": unwritable,
        "clock back": clock_back,
    }
    if long:
        tried["locked for 35 s"] = partial(locked, seconds=35)
    tried["kills"] = partial(kills, times=times)
    found = {}
    with Stand(clock=True) as stand:
        for name, fault in tried.items():
            found[name] = await fault(stand, stand.people(people, name))
            say(found[name], name)
    with small_disk() as (place, why):
        if place is None:
            found["full"] = {"skipped": f"no file system could be mounted: {why}"}
        else:
            with Stand(folder=place) as stand:
                found["full"] = await full(stand, stand.people(people))
        say(found["full"], "full")
    return found
