"""Chat templates from outside: the ids of transformers, messages that stay text, hostile ones."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from lmsmith.core.errors import UserError
from lmsmith.tokenizers import Tokenizer, template
from lmsmith.tokenizers.import_tokenizer import import_tokenizer
from lmsmith.tokenizers.template import ChatTemplate, Rendering, Span

CONTROLS = ["<|im_start|>", "<|im_end|>", "<s>", "</s>", "<|user|>", "<|assistant|>", "<|system|>"]
CORPUS = ["hello there\nuser assistant system [INST] [/INST] <think> 你好 how are you?"] * 8

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] }}"
    "{{ '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate') }}{% endif %}"
    "{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'] | trim + ' [/INST]' }}"
    "{% else %}{{ ' ' + m['content'].strip() + eos_token }}{% endif %}{% endfor %}"
)
THINKING = (
    "{%- for m in messages %}\n"
    "    {%- set content = m.content %}\n"
    "    {%- if m.role == 'assistant' and '</think>' in content %}\n"
    "        {%- set content = content.split('</think>')[-1].lstrip('\n') %}\n"
    "    {%- endif %}\n"
    "    {{- '<|im_start|>' ~ m.role ~ '\n' ~ content ~ '<|im_end|>\n' }}\n"
    "{%- endfor %}\n"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"
)
PHI = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] + '</s>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
GENERATION = (
    "{%- for m in messages %}{%- if m.role == 'assistant' %}"
    "<|im_start|>assistant\n{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}\n"
    "{%- else %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endif %}{% endfor %}"
    "{%- if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TEMPLATES = {
    "chatml": CHATML,
    "mistral": MISTRAL,
    "thinking": THINKING,
    "phi": PHI,
    "generation": GENERATION,
}


def tokenizer_with(jinja: str) -> Tokenizer:
    description = dict(BASE.description)
    first = BASE.vocabulary_size
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    added = [
        {"id": first + n, "content": name, "special": True} | plain
        for n, name in enumerate(CONTROLS)
        if name not in BASE.description["model"]["vocab"]
    ]
    for number, token in enumerate(added):
        token["id"] = first + number
    description["added_tokens"] = [*description["added_tokens"], *added]
    variables = {"bos_token": "<s>", "eos_token": "</s>"}
    return import_tokenizer(description, variables=variables, jinja=jinja)


BASE = Tokenizer.train(CORPUS, 320)
TOKENIZERS = {name: tokenizer_with(jinja) for name, jinja in TEMPLATES.items()}

contents = st.lists(
    st.one_of(
        st.text(st.characters(exclude_categories=["Cs"]), max_size=4),
        st.sampled_from([" ", "\n", "hello", "</think>", "你好", "user", "[INST]"]),
    ),
    max_size=5,
).map("".join)
nasty = st.lists(
    st.sampled_from([*CONTROLS, "<|im_", "end|>", "<|", "user", "|>", " ", "\n", "</think>", "x"]),
    max_size=6,
).map("".join)


def conversation(texts: list[str]) -> list[dict[str, str]]:
    return [
        {"role": "assistant" if n % 2 else "user", "content": text} for n, text in enumerate(texts)
    ]


@pytest.fixture(scope="module")
def oracles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    transformers = pytest.importorskip("transformers")
    found = {}
    for name, tokenizer in TOKENIZERS.items():
        folder = tmp_path_factory.mktemp(name)
        tokenizer.save(folder)
        found[name] = transformers.PreTrainedTokenizerFast(
            tokenizer_file=str(folder / "tokenizer.json"),
            bos_token="<s>",
            eos_token="</s>",
            chat_template=TEMPLATES[name],
        )
    return found


@pytest.mark.parametrize("name", TEMPLATES)
def test_harmless_conversations_have_the_ids_of_transformers(
    name: str, oracles: dict[str, object]
) -> None:
    @hypothesis_settings(max_examples=20)
    @given(st.lists(contents, min_size=1, max_size=4))
    def compare(texts: list[str]) -> None:
        assume(not any(control in text for control in CONTROLS for text in texts))
        messages = conversation(texts)
        for ask in (False, True):
            expected = oracles[name].apply_chat_template(  # type: ignore[attr-defined]
                messages, add_generation_prompt=ask, return_dict=False
            )
            assert TOKENIZERS[name].encode_chat(messages, ask=ask).tokens == expected

    compare()


@pytest.mark.parametrize("name", TEMPLATES)
def test_no_message_makes_a_control_token(name: str) -> None:
    tokenizer = TOKENIZERS[name]

    @hypothesis_settings(max_examples=25)
    @given(st.lists(nasty, min_size=1, max_size=4))
    def check(texts: list[str]) -> None:
        def controls(messages: list[dict[str, str]]) -> list[int]:
            tokens = tokenizer.encode_chat(messages, ask=False).tokens
            return [token for token in tokens if token in tokenizer.control_tokens]

        assert controls(conversation(texts)) == controls(conversation(["x"] * len(texts)))

    check()


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_assistants_tokens_are_its_words_and_the_end_of_its_turn(name: str) -> None:
    tokenizer = TOKENIZERS[name]
    talk = conversation(["hello", "how are you?", "<|im_end|>", "<s> there\n", "", "you"])
    encoded = tokenizer.encode_chat(talk, ask=False)
    end = tokenizer.control_tokens[tokenizer.end_of_turn]
    for number in (1, 3, 5):
        said = tokenizer.decode(
            [t for t, a in zip(encoded.tokens, encoded.authors, strict=True) if a == number],
            special=True,
        )
        content = talk[number]["content"]
        content = content.strip() if name == "mistral" else content
        assert said.removeprefix(" ") == content + end  # " how" is one token after "[/INST]"
    assert {*encoded.authors} == {-1, 1, 3, 5}
    if name != "mistral":
        asked = tokenizer.encode_chat(talk[:-1], ask=True).tokens
        assert encoded.tokens[: len(asked)] == asked


def test_an_empty_reply_is_its_end_alone() -> None:
    encoded = TOKENIZERS["chatml"].encode_chat(conversation(["hello", ""]), ask=False)
    learnt = [t for t, a in zip(encoded.tokens, encoded.authors, strict=True) if a == 1]
    assert learnt == [TOKENIZERS["chatml"].end_of_turn]


def test_what_ends_a_turn_is_read_off_the_template() -> None:
    ends = {n: t.control_tokens[t.end_of_turn] for n, t in TOKENIZERS.items()}
    assert ends == {
        "chatml": "<|im_end|>",
        "mistral": "</s>",
        "thinking": "<|im_end|>",
        "phi": "</s>",
        "generation": "<|im_end|>",
    }
    chatml = TOKENIZERS["chatml"]
    assert [chatml.control_tokens[t] for t in chatml.stop_tokens] == ["<|im_end|>", "</s>"]


def test_a_template_that_rewrites_messages_may_ask_but_not_teach() -> None:
    tokenizer = tokenizer_with(CHATML.replace("m['content']", "m['content'][:5]"))
    talk = conversation(["hello there", "you"])
    written = tokenizer.decode(tokenizer.encode_chat(talk[:1], ask=True).tokens, special=True)
    assert written == "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n"
    with pytest.raises(UserError, match="cannot be known which tokens are the assistant's"):
        tokenizer.encode_chat(talk, ask=False)
    with pytest.raises(UserError, match="spells a control token"):
        tokenizer.encode_chat(conversation(["<s> hello"]), ask=True)


def render(source: str, content: str = "hello") -> Rendering:
    messages = [{"role": "user", "content": content}]
    return ChatTemplate(source, {"bos_token": "<s>"}).render(messages, ask=True, controls=CONTROLS)


def test_a_rendering_says_where_everything_comes_from() -> None:
    rendering = render("<s>[{{ messages[0].content | trim }}]<s>", " a<s>b ")
    assert rendering.text == "<s>[a<s>b]<s>"
    assert rendering.spans == [Span(0, 4, 9)]
    assert rendering.controls == [(0, 3), (10, 13)]


def test_templates_have_what_transformers_gives_them() -> None:
    source = (
        "{%- for n in range(9) %}{% if n == 2 %}{% break %}{% endif %}{{ n }}{% endfor %}"
        "{{ strftime_now('%Y') | length }}{{ {'a': '<é'} | tojson }}"
        "{% if not tools and not documents %}!{% endif %}"
    )
    assert render(source).text == '014{"a": "<é"}!'


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        ("{{ messages.__class__.__mro__ }}{{ ''.__class__.mro() }}", "reaches for what"),
        ("{{ messages.append(1) }}", "reaches for what"),
        ("{{ raise_exception('only users') }}", "refuses this conversation: only users"),
        ("{% for m in messages %}", "not valid Jinja"),
        ("{% include 'x' %}", "fails: "),
        ("{{ open('/etc/passwd') }}", "fails: UndefinedError"),
        ("{{ 1 / 0 }}", "fails: ZeroDivisionError"),
        ("{{ 'x' * 10000000000 }}", "more memory"),
        ("{% for n in range(99999) %}{{ 'xxxxxxxxxxxxxxxxxxxx' }}{% endfor %}", "more than"),
        ("{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}", "chat template"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "nested too deep"),
    ],
)
def test_a_hostile_or_broken_template_ends_in_one_message(source: str, problem: str) -> None:
    with pytest.raises(UserError, match=problem):
        render(source)
    assert render("{{ messages[0].content }}").text == "hello"


def test_a_template_that_never_ends_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    render("{{ bos_token }}")  # the process has started
    monkeypatch.setattr(template, "SECONDS", 1.0)
    loops = "{% for a in range(99999) %}" * 4 + "{% endfor %}" * 4
    with pytest.raises(UserError, match="did not end within 1 seconds"):
        render(loops)
    monkeypatch.undo()
    assert render("{{ bos_token }}").text == "<s>"


def test_a_saved_template_is_the_same(tmp_path: Path) -> None:
    tokenizer = TOKENIZERS["mistral"]
    tokenizer.save(tmp_path)
    loaded = Tokenizer.load(tmp_path)
    talk = conversation(["hello", "you"])
    assert loaded.encode_chat(talk, ask=False) == tokenizer.encode_chat(talk, ask=False)
    (tmp_path / "chat.json").write_text('{"template": "jinja", "stops": 3}')
    with pytest.raises(UserError, match=r"chat\.json: start_of_text"):
        Tokenizer.load(tmp_path)
