"""People who use a house over HTTP and WebSocket, each from an address and by connections of their own."""

import asyncio
import contextlib
import json
import random
import time
from dataclasses import dataclass, field

import aiohttp

from load.turns import Turn

CHAT = "/api/v1/conversation/chat"
SAYINGS = (
    "my friend Odile keeps {n} bees near Annecy",
    "the train to Lyon leaves at {n} past nine",
    "I paid {n} euros for a lamp",
    "my neighbour Karim plays the cello on day {n}",
    "where does Odile keep her bees?",
    "when does the train to Lyon leave?",
    "what did I pay for the lamp?",
    "what does Karim play?",
)
BROKEN = (aiohttp.ClientError, ConnectionError, asyncio.TimeoutError)


@dataclass
class Person:
    """Somebody with an account."""

    name: str
    key: str
    password: str
    address: str  # on the loopback network
    conversation: str | None = None
    last_event: int = 0
    socket: "Line | None" = None
    said: dict[str, Turn] = field(
        default_factory=dict
    )  # over a WebSocket, by key: frames outlive a connection

    @property
    def bearer(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.key}"}


@dataclass
class Seen:
    """One request and what became of it."""

    kind: str
    status: int  # 0: the connection broke
    seconds: float  # from when it was due
    at: float  # seconds since the epoch, when it was over
    retry_after: str | None = None


@dataclass
class Diary:
    """All that was seen and said in one stretch of time."""

    seen: list[Seen] = field(default_factory=list)
    turns: list[Turn] = field(default_factory=list)
    numbers: int = 0

    def turn(self, person: Person, mark: str, wish: str, dice: random.Random) -> Turn:
        """A new message of a person, unlike every other; its first word stands in the answer."""
        self.numbers += 1
        text = f"{mark}{self.numbers:06d}: {dice.choice(SAYINGS).format(n=dice.randrange(60))}{wish}"
        turn = Turn(person.name, text, key=f"key-{mark}{self.numbers}")
        self.turns.append(turn)
        return turn


class Client:
    """One connection of a person, kept as long as the server keeps it."""

    def __init__(self, url: str, person: Person, timeout: float = 60):
        self.url, self.person = url, person
        connector = aiohttp.TCPConnector(limit=1, local_addr=(person.address, 0))
        self.session = aiohttp.ClientSession(
            url, connector=connector, headers=person.bearer, timeout=aiohttp.ClientTimeout(total=timeout)
        )

    async def close(self) -> None:
        await self.session.close()

    async def read(self, path: str, **params) -> tuple[int, str | None, dict]:
        """GET something: status, Retry-After, body."""
        async with self.session.get(path, params=params) as answer:
            body = await answer.read()
            return answer.status, answer.headers.get("Retry-After"), json.loads(body)

    async def sign_in(self) -> tuple[int, str | None]:
        """Give the password."""
        form = {"username": self.person.name, "password": self.person.password}
        async with self.session.post("/token", data=form) as answer:
            await answer.read()
            return answer.status, answer.headers.get("Retry-After")

    async def say(self, turn: Turn, stream: bool, going_on: bool = True) -> tuple[int, str | None]:
        """Say something and take the answer in; how it ended is written into the turn."""
        turn.tries += 1
        body = {"message": turn.text, "stream": stream}
        if going_on and self.person.conversation:
            body["conversation_id"] = self.person.conversation
        try:
            async with self.session.post(CHAT, json=body, headers={"Idempotency-Key": turn.key}) as answer:
                wait = answer.headers.get("Retry-After")
                if answer.status != 200:
                    await answer.read()
                    turn.end("refused", answer.status)
                elif stream:
                    turn.acknowledge(answer.headers["X-Turn-Id"])
                    await self._listen(turn, answer)
                else:
                    told = json.loads(await answer.read())
                    turn.done(told["turn_id"], told["response"])
                    self.person.conversation = told["conversation_id"]
                # a stream that ended otherwise is no success
                if answer.status == 200 and turn.ended != "done":
                    return turn.status or 0, turn.wait and str(turn.wait)
                return answer.status, wait
        except aiohttp.ClientConnectorError:
            turn.end("not there")
        except BROKEN:
            turn.end("broken")
        return 0, None

    async def _listen(self, turn: Turn, answer: aiohttp.ClientResponse) -> None:
        event, turn.heard = "", ""
        turn.end("silent")  # a stream that ends without a terminal event
        async for line in answer.content:
            if line.startswith(b"event: "):
                event = line[7:].strip().decode()
            elif line.startswith(b"data: "):
                data = json.loads(line[6:])
                if event == "start":
                    turn.acknowledge(data["turn_id"])
                    self.person.conversation = data["conversation_id"]
                elif event == "token":
                    turn.heard += data["text"]
                elif event == "done":
                    turn.done(data["turn_id"], data["response"])
                    assert turn.heard == turn.response, f"the pieces are not the answer: {turn}"
                elif event == "error":
                    turn.end("error", data["status"]).wait = data.get("retry_after")


class Line:
    """The WebSocket of a person: a message goes out, and what is told of it comes in."""

    def __init__(self, url: str, person: Person):
        self.url, self.person = url, person
        self.waiting: dict[str, asyncio.Future] = {}
        self.session = self.socket = self.reader = None
        self.hello: dict = {}

    @classmethod
    async def of(cls, url: str, person: Person) -> "Line":
        """The open line of a person, anew if the last one was lost."""
        if person.socket is None or person.socket.closed:
            if person.socket is not None:
                await person.socket.close()
            person.socket = None
            person.socket = await cls(url, person).open()
        return person.socket

    async def open(self) -> "Line":
        """Connect, and go on after the last event that was heard."""
        connector = aiohttp.TCPConnector(local_addr=(self.person.address, 0))
        self.session = aiohttp.ClientSession(self.url, connector=connector, headers=self.person.bearer)
        try:
            self.socket = await self.session.ws_connect(f"/ws/chat/?last_event_id={self.person.last_event}")
            self.hello = await self.socket.receive_json(timeout=60)
            await self.socket.receive_json(timeout=60)  # the history
        except BaseException:
            await self.session.close()
            raise
        self.reader = asyncio.create_task(self._read())
        return self

    async def _read(self) -> None:
        try:
            async for message in self.socket:
                frame = json.loads(message.data)
                if number := frame.get("event_id"):
                    assert number == self.person.last_event + 1, f"{self.person} heard {number}"
                    self.person.last_event = number
                if frame.get("id") in self.person.said:
                    self._take(frame)
        finally:
            for key, ended in self.waiting.items():
                if not ended.done():
                    self.person.said[key].end("broken")
                    ended.set_result((0, None))

    def _take(self, frame: dict) -> None:
        """Hear what is told of a message, whether or not somebody waits for its end just now."""
        turn, ended = self.person.said[frame["id"]], self.waiting.get(frame["id"])
        over = None  # how it ended, if it did
        match frame["type"]:
            case "ack":
                turn.acknowledge(frame["turn_id"])
                turn.heard = ""
            case "token":
                turn.heard += frame["text"]
            case "done":
                turn.done(frame["turn_id"], turn.heard)
                over = 200, None
            case "error":
                turn.end("error" if turn.turn_id else "refused", frame["status"])
                wait = frame.get("retry_after")
                over = frame["status"], wait and str(wait)
            case other:
                raise AssertionError(f"an unknown frame: {other}")
        if over and ended and not ended.done():
            ended.set_result(over)

    @property
    def closed(self) -> bool:
        return self.socket is None or self.socket.closed or self.reader.done()

    async def say(self, turn: Turn, timeout: float = 60) -> tuple[int, str | None]:
        """Say something, and wait for its end."""
        turn.tries += 1
        ended = asyncio.get_running_loop().create_future()
        self.person.said[turn.key], self.waiting[turn.key] = turn, ended
        try:
            await self.socket.send_json({"type": "chat", "id": turn.key, "text": turn.text})
            return await asyncio.wait_for(ended, timeout)
        except BROKEN:
            turn.end("broken")
            return 0, None
        finally:
            self.waiting.pop(turn.key, None)

    async def close(self) -> None:
        """Say goodbye."""
        with contextlib.suppress(*BROKEN):
            await self.socket.close()
        await self._end()

    async def drop(self) -> None:
        """Be gone without a word."""
        self.socket._response.connection.transport.abort()
        await self._end()

    async def _end(self) -> None:
        with contextlib.suppress(*BROKEN):  # an assertion that failed while reading is raised here
            await self.reader
        await self.session.close()


async def whole_history(client: Client) -> list[dict]:
    """All turns of a person, newest first."""
    items, before = [], None
    while True:
        status, _, page = await client.read(
            "/api/v1/conversation/history", limit=200, **({"before": before} if before else {})
        )
        assert status == 200, page
        items += page["items"]
        if (before := page["next"]) is None:
            return items


def now() -> float:
    """Seconds, for durations."""
    return time.monotonic()
