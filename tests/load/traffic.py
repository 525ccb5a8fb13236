"""A mixed load: people who chat, look back, search their memories and sign in; closed loop or open loop."""

import asyncio
import contextlib
import random
import time
from collections import Counter, deque

import numpy as np

from load.stand import Stand
from load.visitors import BROKEN, SAYINGS, Client, Diary, Line, Person, Seen

# of a hundred requests
MIX = {
    "chat": 12,
    "chat_stream": 8,
    "chat_socket": 5,
    "history": 40,
    "memories": 15,
    "search": 9,
    "me": 10,
    "sign_in": 1,
}
CHATS = ("chat", "chat_stream", "chat_socket")
READS = {
    "history": ("/api/v1/conversation/history", {"limit": 20}),
    "memories": ("/api/v1/memories", {"limit": 20}),
    "search": ("/api/v1/memories/search", {"limit": 5}),
    "me": ("/api/v1/user/me", {}),
}
KINDS = [kind for kind, share in MIX.items() for _ in range(share)]


class Traffic:
    """What goes on between people and a house, written into a diary."""

    def __init__(self, stand: Stand, people: list[Person], connections: int, mark: str, seed: int = 1):
        self.stand, self.people, self.mark = stand, people, mark
        self.dice, self.diary = random.Random(seed), Diary()
        self.idle = deque(Client(stand.url, people[n % len(people)]) for n in range(connections))
        self.under_way: set[asyncio.Task] = set()
        self.extra = 0  # connections beyond, opened because all were busy

    async def __aenter__(self) -> "Traffic":
        for person in self.people:
            await Line.of(self.stand.url, person)
        return self

    async def __aexit__(self, *error) -> None:
        await asyncio.gather(*self.under_way, return_exceptions=True)
        for client in self.idle:
            await client.close()
        for person in self.people:
            if person.socket is not None:
                await person.socket.close()

    @contextlib.asynccontextmanager
    async def client(self):
        """A connection that is idle, the one that rested longest; a new one where there is none."""
        if self.idle:
            client = self.idle.popleft()
        else:
            self.extra += 1
            client = Client(self.stand.url, self.dice.choice(self.people))
        try:
            yield client
        finally:
            self.idle.append(client)

    async def one(self, kind: str, due: float) -> Seen:
        """One request of a kind that was due at a moment."""
        async with self.client() as client:
            try:
                status, wait = await self._do(kind, client)
            except BROKEN:
                status, wait = 0, None
        seen = Seen(kind, status, time.monotonic() - due, time.time(), wait)
        self.diary.seen.append(seen)
        return seen

    async def _do(self, kind: str, client: Client) -> tuple[int, str | None]:
        if kind == "sign_in":
            return await client.sign_in()
        if kind in READS:
            path, params = READS[kind]
            if kind == "search":
                params = params | {"q": self.dice.choice(SAYINGS).format(n=self.dice.randrange(60))}
            status, wait, _ = await client.read(path, **params)
            return status, wait
        person = client.person
        if self.dice.random() < 0.2:
            person.conversation = None  # something else
        turn = self.diary.turn(person, self.mark, "", self.dice)
        if kind == "chat_socket":
            return await (await Line.of(self.stand.url, person)).say(turn)
        return await client.say(turn, kind == "chat_stream")

    async def closed_loop(self, workers: int, seconds: float) -> float:
        """So many people who ask again as soon as they are answered; the successes in a second."""
        until, before, began = time.monotonic() + seconds, len(self.diary.seen), time.monotonic()

        async def work() -> None:
            while time.monotonic() < until:
                await self.one(self.dice.choice(KINDS), time.monotonic())

        await asyncio.gather(*(work() for _ in range(workers)))
        good = sum(200 <= seen.status < 300 for seen in self.diary.seen[before:])
        return good / (time.monotonic() - began)

    async def open_loop(self, rate: float, seconds: float) -> None:
        """Requests that come when they come (Poisson), `rate` in a second, whether the house keeps up or not."""
        due = time.monotonic()
        until = due + seconds
        while due < until:
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            task = asyncio.create_task(self.one(self.dice.choice(KINDS), due))
            self.under_way.add(task)
            task.add_done_callback(self.under_way.discard)
            due += self.dice.expovariate(rate)

    async def settled(self) -> None:
        """All that was under way has ended."""
        while self.under_way:
            await asyncio.wait(set(self.under_way))


def figures(seen: list[Seen]) -> dict[str, dict]:
    """By kind: how many, by status, and the median and 99th percentile of the successes, in milliseconds."""
    table = {}
    for kind in sorted({one.kind for one in seen}):
        mine = [one for one in seen if one.kind == kind]
        took = [one.seconds * 1000 for one in mine if 200 <= one.status < 300]
        p50, p99 = np.percentile(took, [50, 99]).round(1).tolist() if took else (None, None)
        statuses = {str(status): n for status, n in sorted(Counter(one.status for one in mine).items())}
        table[kind] = {"requests": len(mine), "statuses": statuses, "p50_ms": p50, "p99_ms": p99}
    return table


def slope(samples: list[tuple[float, float]]) -> float:
    """How fast the second grows with the first, by linear fit."""
    at, values = np.array(samples).T
    return float(np.polyfit(at - at[0], values, 1)[0])
