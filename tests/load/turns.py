"""What was said to a house, what each client was told of it, and whether the house's own record agrees."""

from collections import Counter
from dataclasses import dataclass


@dataclass
class Turn:
    """One message, and what the one who sent it saw."""

    person: str
    text: str
    key: str
    turn_id: str | None = None  # as the first acknowledgement had it: from then on the message is stored
    response: str | None = None  # of a `done`: from then on the answer is stored
    heard: str = ""  # the pieces that came, joined
    ended: str = (
        "open"  # done, refused (by a status), error (by a terminal event), broken (by the connection)
    )
    status: int | None = None  # of a refusal or an error
    wait: int | None = None  # seconds, that an error in a stream asks for
    tries: int = 0

    def acknowledge(self, turn_id: str) -> None:
        """The house says that it has stored the message, and as what: it may not say another thing later."""
        assert self.turn_id in (None, turn_id), f"{self.text!r} was {self.turn_id}, and is now {turn_id}"
        self.turn_id = turn_id

    def end(self, how: str, status: int | None = None) -> "Turn":
        """How an attempt ended."""
        self.ended, self.status = how, status
        return self

    def done(self, turn_id: str, response: str) -> "Turn":
        """The house says that it has stored the answer."""
        self.acknowledge(turn_id)
        assert self.response in (None, response), f"{self.text!r} was answered twice, and differently"
        self.response = response
        return self.end("done")


def violations(turns: list[Turn], history: dict[str, list[dict]]) -> list[str]:
    """What the histories (by person, as the API has them) say that cannot be, after what the clients were told."""
    wrong = []
    told = {(turn.person, turn.text): turn for turn in turns}
    for person, shown in history.items():
        times = Counter(item["message"] for item in shown)
        wrong += [f"doubled: {text!r} of {person}" for text, n in times.items() if n > 1]
        wrong += [f"never said: {text!r} of {person}" for text in times if (person, text) not in told]
    kept = {(person, item["message"]): item for person, shown in history.items() for item in shown}
    for place, turn in told.items():
        item = kept.get(place)
        if turn.ended in ("open", "silent"):
            wrong.append(f"neither answered nor refused: {turn}")
        if turn.ended == "refused" and turn.status == 429 and turn.tries == 1 and item is not None:
            wrong.append(f"refused, and stored: {turn}")
        if item is None:
            if turn.turn_id is not None:
                wrong.append(f"lost: {turn}")
            continue
        if turn.turn_id not in (None, item["turn_id"]):
            wrong.append(f"another turn than was acknowledged: {turn}")
        if turn.response is not None and item["response"] != turn.response:
            wrong.append(f"another answer than was acknowledged: {turn}, {item}")
        if item["response"] is not None and turn.text.split(":")[0] not in item["response"]:
            wrong.append(f"the answer to something else: {turn}, {item}")
    return wrong
