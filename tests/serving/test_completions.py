"""What is streamed of a continuation, however far behind its reader is."""

from __future__ import annotations

import asyncio
from typing import Any

from cola_cli.serving.completions import Job, Limits
from cola_cli.serving.scheduler import Scheduler
from cola_cli.serving.schema import CompletionRequest
from tests.serving.conftest import demo

PROMPT = "Tom was a brave sailor who"


def test_text_comes_with_no_glimpse_however_late_it_is_read() -> None:
    """The page shows glimpses and text apart, so a text that came with a glimpse would be lost."""
    scheduler = Scheduler(rows=1, queue=1)
    wanted = CompletionRequest(model="demo", prompt=PROMPT, max_tokens=16, stream=True, watch=True)

    async def streamed() -> tuple[Job, list[dict[str, Any]]]:
        job = Job(wanted, demo(), Limits(), asyncio.get_running_loop())
        scheduler.submit([choice.ticket for choice in job.choices])
        events = job.choices[0].ticket.events
        while not (events and getattr(events[-1], "finish", "running") != "running"):
            await asyncio.sleep(0.02)  # nobody reads before all is written
        return job, [job.chunk(*one) async for news in job.progress() for one in news]

    try:
        job, chunks = asyncio.run(streamed())
    finally:
        scheduler.close()
    glimpses = [chunk for chunk in chunks if "cola" in chunk]
    assert len(glimpses) > 16
    for chunk in glimpses:
        assert chunk["choices"][0]["text"] == ""
        assert chunk["choices"][0]["finish_reason"] is None
    others = [chunk["choices"][0] for chunk in chunks if "cola" not in chunk]
    assert "".join(one["text"] for one in others) == job.choices[0].text
    assert len(job.choices[0].text) > 20
    assert others[-1]["finish_reason"] == "length"
