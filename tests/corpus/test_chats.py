"""Conversations: what is read, what is refused, their tokens, and which of these are answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from cola_cli.artifacts.kinds import Tokens
from cola_cli.corpus.chats import (
    PLAIN,
    ChatTemplate,
    MalformedChat,
    Message,
    read_chat,
    read_template,
    template_of,
)
from cola_cli.corpus.sequences import Sequences
from cola_cli.corpus.tokenizer import TextTokenizer, load_tokenizer
from cola_cli.errors import InputError, OutputConflict, UsageError
from cola_cli.settings.tokenize import TokenizeSettings
from cola_cli.stages.tokenize import tokenize
from tests.conftest import Run, content

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content | trim }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SETTINGS = TokenizeSettings(chat=True, seq_len=64, workers=1, vocab_size=270)


def byte_tokenizer() -> Tokenizer:
    """A token a byte, and those of ChatML."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE({letter: n for n, letter in enumerate(alphabet)}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    names = ("<|endoftext|>", "<|pad|>", "<|im_start|>", "<|im_end|>")
    made.add_special_tokens([AddedToken(name, special=True) for name in names])
    return made


def said(*texts: str) -> list[Message]:
    """Turns of user and assistant, one after the other."""
    return [Message(("user", "assistant")[n % 2], text) for n, text in enumerate(texts)]


def turns(*texts: str) -> dict[str, Any]:
    """The same as a record."""
    return {"messages": [turn._asdict() for turn in said(*texts)]}


def write(path: Path, *records: Any) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def answers(ids: list[int], own: list[bool], tokenizer: TextTokenizer) -> list[str]:
    """The stretches of tokens that are answers, as text."""
    found, before = list[list[int]](), False
    for token, is_own in zip(ids, own, strict=True):
        if is_own:
            found = found if before else [*found, []]
            found[-1].append(token)
        before = is_own
    return [tokenizer.decode(one, skip_special_tokens=False) for one in found]


def test_the_conventions_of_the_field_say_the_same() -> None:
    system = Message("system", "Be kind.")
    shared = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Ho"}]
    assert read_chat(json.dumps(turns("Hi", "Ho"))) == (*said("Hi", "Ho"),)
    assert read_chat(json.dumps({"conversations": shared, "id": 7})) == (*said("Hi", "Ho"),)
    for name in ("response", "completion"):
        assert read_chat(json.dumps({"prompt": "Hi", name: "Ho"})) == (*said("Hi", "Ho"),)
    longer = {"messages": [system._asdict(), *turns("a", "b", "c", "d")["messages"]]}
    assert read_chat(json.dumps(longer)) == (system, *said("a", "b", "c", "d"))


MALFORMED: dict[str, Any] = {
    "it is not an object": [1],
    "it needs one of messages, conversations, prompt (it has text)": {"text": "Hi"},
    "(it has nothing)": {},
    "(it has messages, prompt)": turns("Hi", "Ho") | {"prompt": "Hi"},
    "its field 'tools' is not understood": turns("Hi", "Ho") | {"tools": [{"name": "f"}]},
    "it has a prompt, and not one response to it": {"prompt": "Hi"},
    "messages is not a list of turns": {"messages": "Hi"},
    "turn 2 is not an object with fields": {"messages": [*turns("Hi")["messages"], "Ho"]},
    "turn 1 has not just role and content (it has role, content, name)": {
        "messages": [{"role": "user", "content": "Hi", "name": "x"}]
    },
    "turn 1 has the role 'tool', which is not known": {
        "messages": [{"role": "tool", "content": "Hi"}]
    },
    "turn 1 has the role '[1]'": {"messages": [{"role": [1], "content": "Hi"}]},
    "turn 2 holds something else than a text": {
        "messages": [*turns("Hi")["messages"], {"role": "assistant", "content": None}]
    },
    "turn 2 is empty": turns("Hi", " \n"),
    "turn 2 holds half of a surrogate pair": turns("Hi", "\ud800"),
    "turn 1 is of the assistant, where one of the user is due": {
        "messages": turns("Hi", "Ho")["messages"][1:]
    },
    "turn 2 is of the user, where one of the assistant is due": {
        "messages": [*turns("Hi")["messages"], *turns("Hi")["messages"]]
    },
    "turn 3 is of the system, where one of the user is due": {
        "messages": [*turns("Hi", "Ho")["messages"], {"role": "system", "content": "x"}]
    },
    "it has no response to its last turn": turns("Hi", "Ho", "Hi"),
    "it has no response to": {"messages": []},
    "has no response": {"messages": [{"role": "system", "content": "x"}]},
    "turn 1 is empty": {"prompt": "", "response": "Ho"},
    "line 7: turn 2 is empty": {"prompt": "Hi", "response": "\u00a0\u2003"},
}


@pytest.mark.parametrize(
    ("source", "why"),
    [
        ("{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}", "recursion"),
        ("{{ 'a' * 10**15 }}", "MemoryError"),
        ("{{ raise_exception('no system') if messages[0].role != 'system' }}", "no system"),
        ("{{ messages[0].content.encode('ascii').fromhex('xyz') }}", "fromhex"),
    ],
)
def test_a_template_that_fails_refuses_the_conversation_of_that_line(
    source: str, why: str, tmp_path: Path
) -> None:
    corpus = write(tmp_path / "chats.jsonl", turns("Hi", "Ho"))
    (tmp_path / "t.jinja").write_text(source)
    settings = SETTINGS.model_copy(update={"chat_template": read_template(tmp_path / "t.jinja")})
    with pytest.raises(InputError, match=rf"line 1: the chat template refuses it.*{why}"):
        tokenize([str(corpus)], tmp_path / "tokens", settings)


def test_a_template_may_want_a_message_of_the_system(tmp_path: Path) -> None:
    source = "{{ raise_exception('no system') if messages[0].role != 'system' }}" + PLAIN
    system = {"role": "system", "content": "Be kind."}
    chats = [{"messages": [system, *turns(f"Hi {n}", f"Ho {n}")["messages"]]} for n in range(9)]
    settings = SETTINGS.model_copy(update={"chat_template": source})
    made = tokenize([str(write(tmp_path / "chats.jsonl", *chats))], tmp_path / "tokens", settings)
    assert made.statistics["documents"] == 9


def test_a_conversation_of_endless_turns_is_refused_before_all_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rendered = []
    render = ChatTemplate.render

    def counted(self: ChatTemplate, messages: list[Message], *rest: Any, **more: Any) -> str:
        rendered.append(len(messages))
        return render(self, messages, *rest, **more)

    monkeypatch.setattr(ChatTemplate, "render", counted)
    corpus = write(tmp_path / "chats.jsonl", turns(*["Hi", "Ho"] * 5000))
    with pytest.raises(InputError, match="line 1: it has more than the 64 tokens of a sequence"):
        tokenize([str(corpus)], tmp_path / "tokens", SETTINGS)
    assert max(rendered) < 100


@pytest.mark.parametrize("why", MALFORMED)
def test_a_malformed_conversation_is_named_or_left_out_and_counted(
    why: str, tmp_path: Path
) -> None:
    good = [turns(f"Hi {n}", f"Ho {n}") for n in range(9)]
    corpus = write(tmp_path / "chats.jsonl", *good[:6], MALFORMED[why], *good[6:])
    with pytest.raises(InputError) as found:
        tokenize([str(corpus)], tmp_path / "tokens", SETTINGS)
    assert f"{corpus}, line 7: " in str(found.value)
    assert why in str(found.value)
    settings = SETTINGS.model_copy(update={"malformed": "skip"})
    made = tokenize([str(corpus)], tmp_path / "others", settings).statistics
    assert (made["documents"], made["rejects"]) == (9, 1)


def test_a_field_that_is_there_twice_and_json_that_is_not_are_named(tmp_path: Path) -> None:
    corpus = tmp_path / "chats.jsonl"
    for line, why in {
        '{"prompt": "a", "prompt": "b", "response": "c"}': "line 1: it has a field twice",
        '{"prompt"': "line 1 is not valid JSON",
    }.items():
        corpus.write_text(line)
        with pytest.raises(InputError, match=why):
            tokenize([str(corpus)], tmp_path / "tokens", SETTINGS)
    (tmp_path / "chats.txt").write_text("Hi")
    with pytest.raises(InputError, match="is not a file of JSON lines"):
        tokenize([str(tmp_path / "chats.txt")], tmp_path / "tokens", SETTINGS)
    with pytest.raises(UsageError, match="for conversations"):
        tokenize([str(corpus)], tmp_path / "tokens", TokenizeSettings(chat_template=PLAIN))


def test_what_only_tokens_show_is_named_or_left_out_and_counted(tmp_path: Path) -> None:
    byte_tokenizer().save(str(tmp_path / "tokenizer.json"))
    picky = CHATML + "{% if messages[0].content == 'no' %}{{ raise_exception('never') }}{% endif %}"
    (tmp_path / "chat_template.jinja").write_text(picky)
    cases = {
        "it has more than the 64 tokens": turns("Hi", "long " * 12),
        "it has more than the 64 tokens of": turns("longer " * 10, "Ho"),
        "a message holds the special token <|im_end|>": turns("Hi", "x<|im_end|>"),
        "the chat template refuses it (never)": turns("no", "x"),
    }
    settings = SETTINGS.model_copy(update={"validation_fraction": 0.0})
    for why, record in cases.items():
        corpus = write(tmp_path / "chats.jsonl", turns("Hi", "Ho"), record)
        given = ([str(corpus)], tmp_path / f"tokens {len(why)}")
        with pytest.raises(InputError) as found:
            tokenize(*given, settings, tmp_path / "tokenizer.json")
        assert f"chats.jsonl, line 2: {why}" in str(found.value)
    write(corpus, turns("Hi", "Ho"), *cases.values())
    skip = settings.model_copy(update={"malformed": "skip"})
    given = ([str(corpus)], tmp_path / "others", skip, tmp_path / "tokenizer.json")
    made = tokenize(*given).statistics
    assert (made["documents"], made["rejects"], made["bytes"]) == (1, 4, 5)
    write(corpus, *cases.values())
    with pytest.raises(InputError, match="the corpus has 0 training tokens"):
        tokenize([str(corpus)], tmp_path / "nothing", skip, tmp_path / "tokenizer.json")


def test_answers_with_their_ends_are_what_is_learnt() -> None:
    tokenizer = TextTokenizer(byte_tokenizer())
    chat = [Message("system", "s"), *said("one", "two", "three", "four")]
    for source, end in ((CHATML, "<|im_end|>"), (PLAIN, "<|endoftext|>")):
        template = template_of(source)
        ids, own = template.answered(chat, tokenizer)
        assert answers(ids, own, tokenizer) == [f"two{end}", f"four{end}"]
        assert tokenizer.name_of(template.end(tokenizer)) == end
        # what a model is asked later is what it was trained on
        for n in (2, 4):
            asked = template.encode(chat[:n], tokenizer)
            assert ids[: len(asked)] == asked
            assert own[len(asked)]
            assert not own[len(asked) - 1]
    ids, _ = template_of(CHATML).answered(said("a", "b"), tokenizer)
    expected = "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nb<|im_end|>\n"
    assert tokenizer.decode(ids, skip_special_tokens=False) == expected


@pytest.mark.parametrize("source", [CHATML, PLAIN])
def test_a_prompt_is_what_transformers_makes_of_it(source: str) -> None:
    transformers = pytest.importorskip("transformers")
    ours, chat = (
        TextTokenizer(byte_tokenizer()),
        [Message("system", "s"), *said("one", "two", "é?")],
    )
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_object=byte_tokenizer())
    for turns in (chat[:2], chat):
        messages = [turn._asdict() for turn in turns]
        ids = theirs.apply_chat_template(
            messages, chat_template=source, add_generation_prompt=True, return_dict=False
        )
        found = template_of(source).encode(turns, ours)
        if source == PLAIN:  # end-of-text is ours
            found = [token for token in found if token != ours.end_of_text_id]
        assert found == ids


def test_templates_name_the_end_of_text_and_may_rewrite_earlier_turns() -> None:
    tokenizer = TextTokenizer(byte_tokenizer())
    named = "{% for m in messages %}{{ m.content ~ (eos_token if loop.index is even) }}{% endfor %}"
    ids, own = template_of(named).answered(said("a", "b", "c", "d"), tokenizer)
    assert answers(ids, own, tokenizer) == ["b<|endoftext|>", "d<|endoftext|>"]
    rewriting = "{{ messages | length }}{% for m in messages %} {{ m.content }}{% endfor %}"
    asked = ChatTemplate(rewriting).encode(said("a", "b", "c"), tokenizer)
    assert tokenizer.decode(asked) == "3 a b c"
    with pytest.raises(MalformedChat, match="one after another"):
        ChatTemplate(rewriting).answered(said("a", "b", "c", "d"), tokenizer)
    for wrong in (rewriting, "{% for m in messages %}{{ m.content }}{% endfor %}assistant:"):
        with pytest.raises(InputError, match="cannot be told which tokens are answers"):
            template_of(wrong)
    with pytest.raises(InputError, match="the chat template is not one"):
        template_of("{% for %}")


def test_the_template_is_the_one_beside_the_tokenizer_or_the_one_that_is_given(
    tmp_path: Path, cola: Run
) -> None:
    corpus = write(tmp_path / "chats.jsonl", *(turns(f"Hi {n}", f"Ho {n}") for n in range(40)))
    byte_tokenizer().save(str(tmp_path / "tokenizer.json"))
    given = (SETTINGS, tmp_path / "tokenizer.json")
    tokenize([str(corpus)], tmp_path / "none", *given)
    config = {"chat_template": [{"name": "default", "template": CHATML}]}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    tokenize([str(corpus)], tmp_path / "beside", *given)
    (tmp_path / "own.jinja").write_text("own " + PLAIN)
    command = ("tokenize", "chats.jsonl", "--chat", "--tokenizer", "tokenizer.json")
    cola(*command, "-o", "given", "--seq-len", 64, "--chat-template", "own.jinja")
    found = {
        name: Tokens.open(tmp_path / name).statistics.chat_template
        for name in ("none", "beside", "given")
    }
    assert found == {"none": PLAIN, "beside": CHATML, "given": "own " + PLAIN}
    assert read_template(tmp_path / "tokenizer_config.json") == CHATML
    # one conversation a sequence, padded, its mask beside it
    tokens = Tokens.open(tmp_path / "beside")
    tokenizer = load_tokenizer(tokens.file("tokenizer.json"))
    rows = Sequences(tokens, "train").read(0, 20)
    assert rows.response is not None
    for ids, length, own in zip(rows.tokens, rows.lengths, rows.response, strict=True):
        text = tokenizer.decode(ids[:length], skip_special_tokens=False)
        assert text.count("<|im_start|>user") == text.count("<|endoftext|>") == 1
        assert text.endswith("<|endoftext|>")
        assert not own[length:].any()
        (answer,) = answers(ids.tolist(), own.tolist(), tokenizer)
        assert answer.startswith("Ho ")
        assert answer.endswith("<|im_end|>")


def test_parts_and_shards_and_processes_change_no_byte_and_chats_can_be_added(
    tmp_path: Path, cola: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "chats.jsonl", *(turns(f"Hi {n % 150}", f"Ho {n % 150}") for n in range(200)))
    settings = SETTINGS.model_copy(update={"part_bytes": 300})
    for shard in ((1, 2), (0, 2), (0, 1)):
        tokenize(["chats.jsonl"], tmp_path / "shards", settings, shard=shard)
    command = ("--chat", "--vocab-size", 270, "--seq-len", 64, "--set", "part_bytes=300")
    cola("tokenize", "chats.jsonl", *command, "--workers", 2, "-o", "whole")
    assert content(tmp_path / "shards") == content(tmp_path / "whole")
    made = Tokens.open(tmp_path / "whole").statistics
    assert (made.documents, made.duplicates) == (150, 50)
    before = {path.name: path.read_bytes() for path in (tmp_path / "whole/parts").glob("*.parquet")}
    assert len(before) > 4
    for path in (tmp_path / "whole/parts").glob("*.parquet"):
        assert pq.read_schema(path).names == ["tokens", "length", "segments", "response"]
    more = write(tmp_path / "more.jsonl", turns("new", "newer"))
    tokenize(["chats.jsonl", str(more)], tmp_path / "whole", settings, add=True)
    after = {path.name: path.read_bytes() for path in (tmp_path / "whole/parts").glob("*.parquet")}
    assert before.items() < after.items()
    assert Tokens.open(tmp_path / "whole").statistics.documents == 151
    with pytest.raises(OutputConflict, match="chat"):
        tokenize(["chats.jsonl"], tmp_path / "whole", TokenizeSettings())
