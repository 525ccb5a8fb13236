"""A model server that speaks OpenAI's protocol and answers at once: `python -m load.fake_model` prints its address.

What it does with a message stands in the message, so that it keeps nothing: `[words=20]` sets the length of the answer,
`[pause=0.05]` the seconds before each word, `[break=5]` ends the connection after so many words, `[error=5]` says there
that it failed. It ends with its standard input, so that none is left behind by a script that was killed.
"""

import asyncio
import contextlib
import json
import re
import sys

from aiohttp import web

NAME, WORDS = "fast", 12
WISH = re.compile(r"\[(words|pause|break|error)=([\d.]+)\]")


def answer_to(message: str) -> list[str]:
    """What this model says to a message, in pieces: from an answer one can tell what it answers."""
    wishes = dict(WISH.findall(message))
    words = WISH.sub("", message).split()
    return [f"{word} " for word in ("You", "said:", *words, *["and"] * int(wishes.get("words", WORDS)))] + [
        "that."
    ]


def event(**body) -> bytes:
    """One event of the stream."""
    return b"data: " + json.dumps(body).encode() + b"\n\n"


async def complete(request: web.Request) -> web.StreamResponse:
    """Stream the answer to the last line of the prompt: what was recalled stands above the question."""
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    with contextlib.suppress(ConnectionResetError):  # whoever asked was killed
        await stream(request, response)
    return response


async def stream(request: web.Request, response: web.StreamResponse) -> None:
    """Do with the message what stands in it."""
    prompt = (await request.json())["messages"][-1]["content"]
    question = prompt.rstrip().rpartition("\n")[2].removeprefix("Question: ")
    wishes = {name: float(value) for name, value in WISH.findall(question)}
    await response.prepare(request)
    pieces = answer_to(question)
    for n, piece in enumerate(pieces):
        if n == wishes.get("break"):
            request.transport.abort()
            return
        if n == wishes.get("error"):
            await response.write(event(error={"message": "out of memory"}))
            return
        if "pause" in wishes:
            await asyncio.sleep(wishes["pause"])
        await response.write(event(choices=[{"index": 0, "delta": {"content": piece}}]))
    await response.write(event(choices=[{"index": 0, "delta": {}, "finish_reason": "stop"}]))
    usage = {"prompt_tokens": len(prompt) // 3, "completion_tokens": len(pieces)}
    await response.write(event(choices=[], usage=usage) + b"data: [DONE]\n\n")


async def models(request: web.Request) -> web.Response:
    """The one model there is."""
    return web.json_response({"data": [{"id": NAME, "object": "model", "max_model_len": 4096}]})


async def serve() -> None:
    """Serve on a free port of the loopback address until standard input ends."""
    app = web.Application()
    app.add_routes([web.post("/v1/chat/completions", complete), web.get("/v1/models", models)])
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    print(f"openai:http://127.0.0.1:{runner.addresses[0][1]}/v1#{NAME}", flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    await runner.cleanup()


if __name__ == "__main__":
    asyncio.run(serve())
