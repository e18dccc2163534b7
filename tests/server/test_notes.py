"""Notes reach the browser once more after the run, for frontends that clear them when it ends."""

import asyncio
import contextlib
import json
import uuid

import aiohttp
import pytest

PROGRESS_TEXT = 3
"""How the server marks a text among its binary messages."""
RUN_SECONDS, QUIET_SECONDS = 60, 2
COST = "2 steps, 7 forward passes (3.5 per step)"
MISTAKES = {  # connection or value -> node that says it, what it says
    ("sampler", "model", ("base", 0)): ("fusion", "connect MODEL to the sampler"),
    ("fusion", "null", ("prompt", 0)): ("fusion", "it is the prompt itself"),
    ("sampler", "positive", ("prompt", 0)): ("box:sampler", "no prompt of this run carries guidance"),
    ("sampler", "cfg", 4): ("box:sampler", "set cfg to 1: it is 4"),
}


def node(kind, **inputs):
    return {"class_type": kind, "inputs": {name: list(v) if isinstance(v, tuple) else v for name, v in inputs.items()}}


def graph(wrong=None):
    """Return a prompt: a student whose sampler is in a subgraph, beside a Z-Sampling."""
    start = {"latent_image": ("empty", 0), "seed": 1, "steps": 2, "scheduler": "normal", "denoise": 1.0}
    nodes = {
        "student": node("TinySD3Loader", variant="student"),
        "base": node("TinySD3Loader", variant="base"),
        "prompt": node("CLIPTextEncode", clip=("student", 1), text=uuid.uuid4().hex),  # so that nothing is reused
        "null": node("CLIPTextEncode", clip=("student", 1), text=""),
        "empty": node("EmptySD3LatentImage", width=64, height=64, batch_size=1),
        "fusion": node(
            "TeEFusionConditioning", model=("student", 0), positive=("prompt", 0), null=("null", 0), guidance=3.0
        ),
        "sampler": node(
            "KSampler", model=("fusion", 0), positive=("fusion", 1), negative=("null", 0), cfg=1.0,
            sampler_name="euler", **start,
        ),
        "zigzag": node(
            "ZSampling", model=("base", 0), positive=("prompt", 0), negative=("null", 0), cfg=2.0, inversion_cfg=0.0,
            reflect_steps=-1, rounds=1, inversion="exact", **start,
        ),
    }  # fmt: skip
    if wrong:
        name, slot, value = wrong
        nodes[name]["inputs"][slot] = list(value) if isinstance(value, tuple) else value
    nodes["box:sampler"] = nodes.pop("sampler")
    for number, sampled in enumerate(("box:sampler", "zigzag")):
        nodes[f"decode{number}"] = node("VAEDecode", samples=(sampled, 0), vae=("student", 2))
        nodes[f"picture{number}"] = node("PreviewImage", images=(f"decode{number}", 0))
    return nodes


async def notes_after(server, prompt):
    """Run a prompt; return the texts that come after it has ended, by node."""
    client, texts, ended = uuid.uuid4().hex, {}, False
    async with (
        aiohttp.ClientSession() as session,
        session.ws_connect(f"{server.url}/ws?clientId={client}", max_msg_size=0) as events,
    ):
        async with session.post(f"{server.url}/prompt", json={"prompt": prompt, "client_id": client}) as answer:
            assert answer.ok, await answer.text()
        while True:
            try:
                message = await events.receive(timeout=QUIET_SECONDS if "zigzag" in texts else RUN_SECONDS)
            except asyncio.TimeoutError:
                return texts
            if message.type is aiohttp.WSMsgType.TEXT:
                event = json.loads(message.data)
                assert event["type"] != "execution_error", event
                ended = ended or event["type"] == "execution_success"
            elif ended and int.from_bytes(message.data[:4], "big") == PROGRESS_TEXT:
                size = int.from_bytes(message.data[4:8], "big")
                texts[message.data[8 : 8 + size].decode()] = message.data[8 + size :].decode()


@pytest.mark.parametrize("wrong", [None, *MISTAKES], ids=str)
def test_costs_and_mistakes_come_again_after_the_run(server, wrong):
    texts = asyncio.run(notes_after(server, graph(wrong)))
    assert texts.pop("zigzag").startswith(COST)
    assert "Allowed: " in texts["fusion"], "what the student is"
    texts = {node: text for node, text in texts.items() if "warning" in text}
    if wrong is None:
        assert texts == {}
        return
    name, expected = MISTAKES[wrong]
    parts = name.split(":")
    # on the node and on the subgraph nodes around it, of which the canvas shows one
    assert set(texts) == {":".join(parts[: depth + 1]) for depth in range(len(parts))}
    assert all(text.startswith("TeEFusion warning: ") and expected in text for text in texts.values())


async def shown_after_each(server, prompts):
    """Run prompts in one browser; return what every node shows after each."""
    client, texts, shown = uuid.uuid4().hex, {}, []
    async with (
        aiohttp.ClientSession() as session,
        session.ws_connect(f"{server.url}/ws?clientId={client}", max_msg_size=0) as events,
    ):
        for prompt in prompts:
            async with session.post(f"{server.url}/prompt", json={"prompt": prompt, "client_id": client}) as answer:
                assert answer.ok, await answer.text()
            ended = False
            with contextlib.suppress(asyncio.TimeoutError):
                while True:
                    message = await events.receive(timeout=QUIET_SECONDS if ended else RUN_SECONDS)
                    if message.type is aiohttp.WSMsgType.TEXT:
                        ended = ended or json.loads(message.data)["type"] == "execution_success"
                    elif int.from_bytes(message.data[:4], "big") == PROGRESS_TEXT:
                        size = int.from_bytes(message.data[4:8], "big")
                        texts[message.data[8 : 8 + size].decode()] = message.data[8 + size :].decode()
            shown.append(dict(texts))
    return shown


@pytest.mark.parametrize(("node", "slot", "value", "warned", "warning"), [
    ("box:sampler", "model", ["student", 0], "fusion", "connect MODEL to the sampler"),
    ("fusion", "null", ["prompt", 0], "fusion", "it is the prompt itself"),
    ("box:sampler", "cfg", 4.0, "box:sampler", "it is 4"),
])  # fmt: skip
def test_a_warning_comes_with_the_mistake_and_goes_with_it(server, node, slot, value, warned, warning):
    """Also where its node does not run again: a model that is connected elsewhere changes only the sampler."""
    right = graph()
    wrong = json.loads(json.dumps(right))
    wrong[node]["inputs"][slot] = value
    before, mistaken, corrected = asyncio.run(shown_after_each(server, [right, wrong, right]))
    assert "warning" not in before.get(warned, "") and warning in mistaken[warned]
    assert corrected[warned].strip() == before.get(warned, "")


def test_an_old_warning_goes_from_a_node_that_now_runs_without_us(server):
    wrong, bypassed = graph(("sampler", "cfg", 4.0)), graph(("sampler", "model", ("base", 0)))
    bypassed["prompt"], bypassed["null"] = wrong["prompt"], wrong["null"]
    *mistaken, without_us = asyncio.run(shown_after_each(server, [wrong, wrong, bypassed]))
    assert all("it is 4" in shown["box:sampler"] for shown in mistaken), "also if nothing is sampled again"
    assert not without_us["box:sampler"].strip() and "connect MODEL" in without_us["fusion"]
