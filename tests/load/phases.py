"""What a house does at rest, at its capacity, at half and at twice of it, and with people who come and go."""

import asyncio
import time

from load.stand import Stand
from load.traffic import CHATS, READS, Traffic, figures, slope
from load.visitors import Line, Person, Seen

WORKERS = (4, 8, 16)  # of the closed loop; no more, or chats are refused for want of a place


async def unloaded(stand: Stand, people: list[Person], rounds: int) -> dict[str, float]:
    """The median of each route with nobody else there, in milliseconds."""
    async with Traffic(stand, people[:1], 1, "Rest") as traffic:
        for _ in range(3):
            await traffic.one("chat", time.monotonic())
        traffic.diary.seen.clear()
        for _ in range(rounds):
            for kind in (*READS, "chat"):
                await traffic.one(kind, time.monotonic())
        return {kind: row["p50_ms"] for kind, row in figures(traffic.diary.seen).items()}


async def capacity(stand: Stand, people: list[Person], seconds: float) -> dict:
    """The most successes in a second, whoever asks again as soon as they are answered."""
    found = {}
    async with Traffic(stand, people, 20, "Full") as traffic:
        await traffic.closed_loop(8, seconds / 4)  # what is made once is made
        spent, asked = stand.gauges()["process_cpu_seconds_total"], len(traffic.diary.seen)
        for workers in WORKERS:
            found[workers] = round(await traffic.closed_loop(workers, seconds / len(WORKERS)), 1)
        spent = stand.gauges()["process_cpu_seconds_total"] - spent
        each = 1000 * spent / (len(traffic.diary.seen) - asked)
        refused = sum(one.status >= 300 or one.status == 0 for one in traffic.diary.seen)
        wrong = await stand.wrong(people, traffic.diary.turns)
    return {
        "per_second": max(found.values()), "by_workers": found, "server_cpu_ms_each": round(each, 1),
        "refused": refused, "wrong": wrong,
    }  # fmt: skip


async def half(
    stand: Stand, people: list[Person], connections: int, rate: float, seconds: float, rest: dict
) -> dict:
    """Arrivals that the house can bear, for long."""
    samples = []

    async def look() -> None:
        while True:
            await asyncio.sleep(max(0.5, seconds / 300))
            gauges = await asyncio.to_thread(stand.gauges)
            samples.append((time.monotonic(), gauges["process_resident_memory_bytes"]))

    async with Traffic(stand, people, connections - len(people), "Half") as traffic:
        await traffic.open_loop(rate, min(30, seconds / 5))  # warm
        await traffic.settled()
        warm, looking = len(traffic.diary.seen), asyncio.create_task(look())
        began = time.monotonic()
        await traffic.open_loop(rate, seconds)
        await traffic.settled()
        took = time.monotonic() - began
        looking.cancel()
        seen, turns = traffic.diary.seen[warm:], traffic.diary.turns
        wrong = await stand.wrong(people, turns)
    table = figures(seen)
    bad = [
        f"{kind} got {status}"
        for kind, row in table.items()
        for status in row["statuses"]
        if status[0] != "2"
    ]
    slow = [
        f"{kind}: p99 {row['p99_ms']} ms, unloaded {rest[kind]} ms" for kind, row in table.items()
        if kind in READS and row["p99_ms"] > 10 * rest[kind]
    ]  # fmt: skip
    grown, late = slope(samples) / 1e6, slope(samples[len(samples) // 2 :]) / 1e6
    grows = [f"memory grows by {late * 60:.1f} MB in a minute"] if seconds > 300 and late * 60 > 1 else []
    said = sum(1 for one in seen if one.kind in CHATS)
    return {
        "rate": round(rate, 1), "seconds": round(took, 1), "requests": len(seen), "turns": said, "routes": table,
        "memory_mb": round(samples[-1][1] / 1e6, 1), "memory_mb_per_minute": round(grown * 60, 3),
        "memory_mb_per_minute_second_half": round(late * 60, 3),
        "memory_kb_per_turn": round(grown * 1000 * took / max(1, said), 2),
        "memory_mb_series": [round(value / 1e6, 1) for _, value in samples[:: max(1, len(samples) // 20)]],
        "connections": connections, "extra_connections": traffic.extra, "wrong": wrong + bad + slow + grows,
    }  # fmt: skip


async def twice(
    stand: Stand, people: list[Person], connections: int, most: float, seconds: float, rest: dict
) -> dict:
    """Arrivals that the house cannot bear: it may refuse, and must go on."""
    async with Traffic(stand, people, connections - len(people), "Much") as traffic:
        await traffic.open_loop(2 * most, seconds)
        began = time.monotonic()
        during = len(traffic.diary.seen)
        recovery = await recovered(traffic, rest, began)
        await traffic.settled()
        drained = time.monotonic() - began
        seen, turns = list(traffic.diary.seen), traffic.diary.turns
        for client in traffic.idle:  # else idle ones are open while the histories are read
            await client.close()
        wrong = await stand.wrong(people, turns)
    accepted = sum(200 <= one.status < 300 for one in seen[:during])
    wrong += [f"{one.kind} got {one.status}, Retry-After {one.retry_after}" for one in seen if unfit(one)]
    if accepted / seconds < most / 2:
        wrong.append(f"collapse: {accepted / seconds:.1f} successes in a second, of a capacity of {most}")
    if recovery > 10:
        wrong.append(f"not itself again after {recovery:.1f} s")
    return {
        "rate": round(2 * most, 1), "seconds": seconds, "requests": len(seen),
        "accepted_per_second": round(accepted / seconds, 1),
        "recovery_seconds": round(recovery, 1), "drained_seconds": round(drained, 1), "routes": figures(seen),
        "extra_connections": traffic.extra, "wrong": sorted(set(wrong))[:20],
    }  # fmt: skip


async def recovered(traffic: Traffic, rest: dict, began: float) -> float:
    """Seconds until chat and history answer as they do at rest, three times in a row: within three times the median."""
    good, since = 0, began
    while good < 3 and time.monotonic() - began < 60:
        asked = time.monotonic()
        each = [await traffic.one(kind, time.monotonic()) for kind in ("history", "chat")]
        fit = all(one.status == 200 and one.seconds * 1000 < max(100, 3 * rest[one.kind]) for one in each)
        since = asked if fit and not good else since
        good = good + 1 if fit else 0
    return since - began if good == 3 else 60.0


def unfit(one: Seen) -> bool:
    """Whether this is no answer that a house may give that has too much to do."""
    return not (200 <= one.status < 300 or one.status in (429, 503) and (one.retry_after or "").isdigit())


async def sockets(stand: Stand, people: list[Person], cycles: int, at_once: int = 20) -> dict:
    """People who connect and leave, half of them without a word, some in the middle of an answer."""

    async def many(mark: str, count: int) -> None:
        async with Traffic(stand, [], 0, mark) as traffic:
            places = asyncio.Semaphore(at_once)

            async def one(n: int) -> None:
                async with places:
                    person = people[n % len(people)]
                    person.last_event = 10**9  # not what others on the same account are told
                    line = await Line(stand.url, person).open()
                    if n % 10 == 0:
                        turn = traffic.diary.turn(person, mark, "[pause=0.01]", traffic.dice)
                        await line.socket.send_json({"type": "chat", "id": turn.key, "text": turn.text})
                    await (line.drop() if n % 2 else line.close())

            await asyncio.gather(*(one(n) for n in range(count)))

    await many("Warm", min(200, cycles))
    before = await quiet(stand)
    began = time.monotonic()
    await many("Come", cycles)
    took = time.monotonic() - began
    after = await quiet(stand)
    grown = {name: after[name] - before[name] for name in before}
    wrong = []
    if after["mongars_listeners"] or grown["mongars_tasks"] > 0:
        wrong.append(f"left open: {after}")
    if grown["process_open_fds"] > 2:
        wrong.append(f"{grown['process_open_fds']:.0f} more files are open")
    if grown["process_resident_memory_bytes"] > max(16e6, 16e3 * cycles):
        wrong.append(f"{grown['process_resident_memory_bytes'] / 1e6:.1f} MB more memory")
    return {
        "cycles": cycles, "seconds": round(took, 1), "listeners": after["mongars_listeners"],
        "tasks": grown["mongars_tasks"], "open_files": grown["process_open_fds"],
        "memory_mb": round(grown["process_resident_memory_bytes"] / 1e6, 1), "wrong": wrong,
    }  # fmt: skip


async def quiet(stand: Stand, patience: float = 60) -> dict[str, float]:
    """The gauges of a house where nothing goes on any more: no answer, no listener, and as many tasks for a second."""
    names = ("mongars_listeners", "mongars_tasks", "process_open_fds", "process_resident_memory_bytes")
    until, since, last = time.monotonic() + patience, time.monotonic(), {}
    while time.monotonic() < until and (not last or time.monotonic() - since < 1):
        gauges = await asyncio.to_thread(stand.gauges)
        now = {name: gauges[name] for name in names}
        busy = gauges["mongars_listeners"] + gauges['mongars_answers{state="running"}']
        if busy or not last or now["mongars_tasks"] != last["mongars_tasks"]:
            since = time.monotonic()
        last = now
        await asyncio.sleep(0.2)
    return last
