"""OpenAI's own client, unchanged, and continuations that are those of `cola sample`."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import httpx
import openai
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cola_cli.reporting import Silent
from cola_cli.sampling.prompts import given_prompts
from cola_cli.serving.chat import ChatTemplate
from cola_cli.serving.completions import Served
from cola_cli.stages.answers import sample_stream
from tests.serving.conftest import TEMPLATE, Running

PROMPTS = ["Tom was a brave sailor", "Once upon a time", "The", "", "Anna saw a ship and"]


@pytest.fixture(scope="module")
def client(server: Running) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="unused", max_retries=0)


def sampled(
    served: Served, texts: list[str], item: int = 0, **changes: Any
) -> list[dict[str, Any]]:
    """What `cola sample` prints for these prompts, one at a time."""
    chosen = served.settings.model_copy(update=changes | {"batch_size": 1})
    numbered = enumerate(given_prompts(texts), item)
    return [
        one.row()
        for one in sample_stream(served.model, numbered, chosen, Silent())
        if one.finish != "running"
    ]


@settings(max_examples=12)
@given(
    st.lists(st.sampled_from(PROMPTS), min_size=1, max_size=4),
    st.fixed_dictionaries(
        {
            "seed": st.integers(0, 3),
            "temperature": st.sampled_from([0.0, 0.8]),
            "max_tokens": st.integers(1, 20),
        }
    ),
    st.fixed_dictionaries(
        {
            "steps": st.sampled_from([2, 4]),
            "guidance": st.sampled_from([1.0, 2.0]),
            "top_k": st.sampled_from([None, 20]),
        }
    ),
    st.integers(0, 3),
    st.booleans(),
)
def test_a_completion_is_what_cola_sample_gives(
    server: Running,
    client: openai.OpenAI,
    prompts: list[str],
    options: dict[str, Any],
    more: dict[str, Any],
    item: int,
    stream: bool,
) -> None:
    names = {"max_tokens": "max_new_tokens"}
    changes = {names.get(name, name): value for name, value in (options | more).items()}
    expected = sampled(server.models[0], prompts, item, **changes)
    asked = {"model": "demo", "prompt": prompts, "extra_body": more | {"item": item}} | options
    if stream:
        texts, finish, usage = [""] * len(prompts), [None] * len(prompts), None
        chunks = client.completions.create(
            **asked, stream=True, stream_options={"include_usage": True}
        )
        for chunk in chunks:
            usage = chunk.usage
            for choice in chunk.choices:
                texts[choice.index] += choice.text
                finish[choice.index] = choice.finish_reason
    else:
        answer = client.completions.create(**asked)
        texts = [choice.text for choice in answer.choices]
        finish, usage = [choice.finish_reason for choice in answer.choices], answer.usage
    assert texts == [row["text"] for row in expected]
    assert finish == [row["finish"] for row in expected]
    assert usage.completion_tokens == sum(row["tokens"] for row in expected)
    assert usage.total_tokens == usage.completion_tokens + usage.prompt_tokens


@pytest.mark.parametrize("model", [1, 2])
def test_baselines_are_served_too(server: Running, client: openai.OpenAI, model: int) -> None:
    served = server.models[model]
    (expected,) = sampled(served, ["Tom was a"], seed=4, temperature=1.0, max_new_tokens=9)
    found = client.completions.create(
        model=served.name, prompt="Tom was a", seed=4, temperature=1.0, max_tokens=9
    )
    assert found.choices[0].text == expected["text"]


def test_the_first_choice_of_n_is_the_only_one_of_one(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"model": "demo", "prompt": PROMPTS[:2], "max_tokens": 8}
    found = client.completions.create(**asked, n=3).choices
    assert [choice.index for choice in found] == list(range(6))
    assert len({choice.text for choice in found}) > 2
    for index, prompt in [(0, PROMPTS[0]), (2, PROMPTS[0]), (4, PROMPTS[1])]:
        one = client.completions.create(**asked | {"prompt": prompt}, extra_body={"item": index})
        assert one.choices[0].text == found[index].text


def test_token_ids_are_prompts_and_echo_gives_the_prompt_back(
    server: Running, client: openai.OpenAI
) -> None:
    ids = server.models[0].model.require_tokenizer().encode(PROMPTS[0])
    texts = {
        client.completions.create(model="demo", prompt=prompt, max_tokens=8, echo=True)
        .choices[0]
        .text
        for prompt in (PROMPTS[0], ids, [ids])
    }
    assert len(texts) == 1
    assert texts.pop().startswith(f"{PROMPTS[0]} ")


@pytest.mark.parametrize("stream", [False, True])
def test_a_stop_string_ends_a_continuation_before_it(
    server: Running, client: openai.OpenAI, stream: bool
) -> None:
    asked: dict[str, Any] = {"model": "demo", "prompt": PROMPTS[0], "max_tokens": 60}
    whole = client.completions.create(**asked).choices[0].text
    stop = whole[25:31]
    asked |= {"stop": ["never in it", stop]}
    if stream:
        chunks = list(client.completions.create(**asked, stream=True))
        text = "".join(chunk.choices[0].text for chunk in chunks)
        finish = chunks[-1].choices[0].finish_reason
    else:
        answer = client.completions.create(**asked)
        text, finish = answer.choices[0].text, answer.choices[0].finish_reason
        assert answer.usage.completion_tokens < 20
    assert text == whole[: whole.index(stop)]
    assert finish == "stop"
    stops = tuple(asked["stop"])
    (row,) = sampled(server.models[0], PROMPTS[:1], max_new_tokens=60, stop=stops)
    assert (row["text"], row["finish"]) == (text, finish)  # `cola sample --stop` cuts there too
    if not stream:
        assert row["tokens"] == answer.usage.completion_tokens


def test_a_stream_comes_block_by_block(client: openai.OpenAI) -> None:
    chunks = list(
        client.completions.create(model="demo", prompt=PROMPTS[0], max_tokens=40, stream=True)
    )
    assert len(chunks) > 5
    assert [chunk.choices[0].finish_reason for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)


@pytest.mark.parametrize("stream", [False, True])
def test_a_chat_is_the_completion_of_its_template(client: openai.OpenAI, stream: bool) -> None:
    messages: Any = [
        {"role": "system", "content": "Tell stories."},
        {"role": "user", "content": [{"type": "text", "text": "Tom was"}]},
    ]
    prompt = "system: Tell stories.\nuser: Tom was\nassistant:"
    expected = client.completions.create(model="demo", prompt=prompt, max_tokens=12).choices[0].text
    asked: dict[str, Any] = {"model": "demo", "messages": messages, "max_completion_tokens": 12}
    if stream:
        chunks = client.chat.completions.create(**asked, stream=True)
        found = "".join(chunk.choices[0].delta.content for chunk in chunks)
    else:
        found = client.chat.completions.create(**asked).choices[0].message.content
    assert found == expected


def test_a_model_without_a_template_refuses_to_chat(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="no chat template"):
        client.chat.completions.create(model="next", messages=[{"role": "user", "content": "Hi"}])


def test_models_are_listed(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["demo", "next", "masks"]
    assert client.models.retrieve("next").owned_by == "cola"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("none")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"temperature": -1}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"n": 0}, "n:"),
        ({"n": 65}, "1 to 64"),
        ({"prompt": []}, "1 to 64"),
        ({"prompt": [10**6]}, "prompt holds the token"),
        ({"prompt": "word " * 3000}, "tokens; with this max_tokens"),
        ({"max_tokens": 4000}, "0 are possible"),
        ({"logprobs": 1}, "logprobs"),
        ({"presence_penalty": 1}, "presence_penalty has no meaning"),
        ({"stop": ""}, "stop"),
        ({"seed": 2**60}, "seed"),
        ({"extra_body": {"stps": 3}}, "Did you mean steps"),
        ({"extra_body": {"steps": 1000}}, "256 passes"),
        (
            {"extra_body": {"first_block": "partial-repaint", "eta": 0, "repaint_times": 900}},
            "256 passes",
        ),
        ({"extra_body": {"watch": True}}, "watch is for streams"),
        ({"extra_body": {"grid": [1, 0.5]}}, "grid must fall"),
    ],
    ids=str,
)
def test_what_is_wrong_is_named(
    client: openai.OpenAI, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(openai.BadRequestError, match=message) as caught:
        client.completions.create(**{"model": "demo", "prompt": "Tom", "max_tokens": 4} | change)
    assert isinstance(caught.value.body, dict)
    assert caught.value.body["type"] == "invalid_request_error"
    assert set(caught.value.body) == {"message", "type", "param", "code"}


def test_fields_without_meaning_are_accepted_where_they_change_nothing(
    client: openai.OpenAI,
) -> None:
    client.completions.create(
        model="demo", prompt="Tom", max_tokens=1, presence_penalty=0, frequency_penalty=0, best_of=1,
        user="me", logit_bias={}, top_p=1,
    )  # fmt: skip


def test_an_option_that_the_model_refuses_is_a_bad_request(client: openai.OpenAI) -> None:
    """Found by the sampler only, on the engine's thread."""
    with pytest.raises(openai.BadRequestError, match="repetition penalty"):
        client.completions.create(
            model="masks", prompt="Tom", max_tokens=4, extra_body={"repetition_penalty": 1.3}
        )
    with pytest.raises(openai.BadRequestError, match="goes on from one"):
        client.completions.create(model="next", prompt="", max_tokens=4)
    with pytest.raises(openai.NotFoundError, match="'gpt-4' is not served"):
        client.completions.create(model="gpt-4", prompt="", max_tokens=4)


def test_a_watched_stream_shows_latents_and_tokens_on_their_way(server: Running) -> None:
    asked = {"prompt": PROMPTS[0], "max_tokens": 9, "steps": 3, "watch": True, "stream": True}
    text, seen = "", []
    with httpx.stream("POST", f"{server.url}/v1/completions", json=asked) as answer:
        for line in answer.iter_lines():
            if line.startswith("data: {"):
                chunk = httpx.Response(200, content=line[6:]).json()
                text += chunk["choices"][0]["text"]
                seen += [chunk["cola"]] if "cola" in chunk else []
    (expected,) = sampled(server.models[0], [PROMPTS[0]], max_new_tokens=9, steps=3)
    assert text == expected["text"]
    assert [one["t"] for one in seen[:3]] == [1.0, 0.6667, 0.3333]
    for one in seen:
        assert len(one["tokens"]) == len(one["chances"])
        assert len(one["places"]) == 4


def test_metrics_and_health(server: Running, client: openai.OpenAI) -> None:
    before = httpx.get(f"{server.url}/metrics").text
    client.completions.create(model="demo", prompt="Tom", max_tokens=5)
    after = httpx.get(f"{server.url}/metrics").text
    count = "cola_generated_tokens_total "
    assert _value(after, count) == _value(before, count) + 5
    assert httpx.get(f"{server.url}/health").json() == {"status": "ok"}


def _value(text: str, name: str) -> float:
    return next(float(line.split()[-1]) for line in text.splitlines() if line.startswith(name))


def test_an_autoregressive_model_tells_log_probabilities(
    server: Running, client: openai.OpenAI
) -> None:
    """Those of the whole text in one pass of the network."""
    served = server.models[1]
    network, tokenizer = served.model.networks[-1], served.model.require_tokenizer()
    prompt = tokenizer.encode("Tom was a brave sailor")
    asked: Any = {"model": "next", "max_tokens": 6, "temperature": 0.9}
    ids = served.model.generate_ids([prompt], max_new_tokens=6, temperature=0.9)[0].ids
    log = network(torch.tensor([prompt + ids]))[0, len(prompt) - 1 : -1].log_softmax(-1)
    expected = log[range(6), ids].tolist()
    texts = [tokenizer.decode([token]) for token in ids]

    choice = client.completions.create(**asked, prompt=prompt, logprobs=3).choices[0]
    assert choice.logprobs is not None
    assert choice.logprobs.tokens == texts
    assert choice.logprobs.token_logprobs == pytest.approx(expected, abs=1e-5)
    for place, top in enumerate(choice.logprobs.top_logprobs or []):
        best = log[place].argsort(descending=True)[:3].tolist()
        likeliest = {tokenizer.decode([token]): float(log[place, token]) for token in best}
        assert top == pytest.approx(likeliest | {texts[place]: expected[place]}, abs=1e-5)
    starts = [len(tokenizer.continuation(prompt, ids[:count])) for count in range(6)]
    assert choice.logprobs.text_offset == starts

    with_template = Running([replace(served, template=ChatTemplate(TEMPLATE))])
    try:
        chat = openai.OpenAI(base_url=f"{with_template.url}/v1", api_key="unused").chat
        messages: Any = [{"role": "user", "content": "Hi"}]
        found = chat.completions.create(**asked, messages=messages, logprobs=True, top_logprobs=2)
    finally:
        with_template.stop()
    content = found.choices[0].logprobs
    assert content is not None
    assert content.content is not None
    assert len(content.content) == 6
    for one in content.content:
        values = [top.logprob for top in one.top_logprobs]
        assert len(values) == 2
        assert values == sorted(values, reverse=True)
        assert one.logprob <= values[0]
        assert bytes(one.bytes or []).decode() == one.token


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": "masks"}, "tokens have no probabilities"),
        ({"stream": True}, "without stream and echo"),
        ({"echo": True}, "without stream and echo"),
        ({"logprobs": 21}, "logprobs"),
    ],
    ids=str,
)
def test_log_probabilities_that_cannot_be_told_are_refused(
    client: openai.OpenAI, change: dict[str, Any], message: str
) -> None:
    asked: dict[str, Any] = {"model": "next", "prompt": "Tom", "max_tokens": 4, "logprobs": 1}
    with pytest.raises(openai.BadRequestError, match=message):
        client.completions.create(**asked | change)
