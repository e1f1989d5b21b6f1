"""Tokenizers and chat templates are read from a checkpoint as data; no code of its own runs."""

from __future__ import annotations

import json
import shutil
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from fastdllm.errors import CheckpointError, OptionError
from fastdllm.text import Text, load_text

QWEN2 = Path(__file__).parent / "data" / "qwen2-small"
FIRST = 556  # ids of qwen2-small: 256 bytes, 300 merges, then what a checkpoint adds
DREAM_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<tool_call>", "<|beginoftext|>", "<|mask|>"]
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] | trim }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLADA_TEMPLATE = (
    "{% if messages[0]['role'] == 'tool' %}{{ raise_exception('no tools') }}{% endif %}{{ bos_token }}"
    "{% for m in messages %}<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n{{ m['content'] }}<|eot_id|>"
    "{% endfor %}{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)


def added_token(content: str) -> dict[str, object]:
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
    return {"content": content, **flags, "special": content != "<tool_call>"}


@pytest.fixture
def dream(tmp_path: Path) -> Path:
    """A folder as Dream's: Qwen2's files, and a class that must never run."""
    shutil.copytree(QWEN2, tmp_path, dirs_exist_ok=True)
    tokens = {str(FIRST + k): added_token(content) for k, content in enumerate(DREAM_TOKENS)}
    settings = {
        "add_bos_token": False, "added_tokens_decoder": tokens, "additional_special_tokens": DREAM_TOKENS[1:3],
        "auto_map": {"AutoTokenizer": ["tokenization_dream.DreamTokenizer", None]}, "bos_token": "<|beginoftext|>",
        "chat_template": CHATML, "eos_token": "<|endoftext|>", "mask_token": "<|mask|>", "model_max_length": 131072,
        "pad_token": "<|endoftext|>", "tokenizer_class": "DreamTokenizer", "unk_token": None,
    }  # fmt: skip
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    auto_map = {"AutoConfig": "tokenization_dream.DreamConfig"}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "Dream", "auto_map": auto_map}))
    ran = tmp_path / "RAN"
    (tmp_path / "tokenization_dream.py").write_text(f"open({str(ran)!r}, 'w')\nraise SystemExit('custom code ran')\n")
    return tmp_path


@pytest.fixture
def llada(tmp_path: Path) -> Path:
    """A folder as LLaDA's: tokenizer.json, the template in tokenizer_config.json."""
    vocab = json.loads((QWEN2 / "vocab.json").read_text())
    tokenizer = Tokenizer(models.BPE(vocab, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    names = ["startoftext", "endoftext", "mdm_mask", "start_header_id", "end_header_id", "eot_id"]
    tokenizer.add_special_tokens([AddedToken(f"<|{name}|>", normalized=False) for name in names])
    tokenizer.enable_truncation(5)
    tokenizer.enable_padding(length=9)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    settings = {"tokenizer_class": "CustomTokenizer", "bos_token": "<|startoftext|>", "chat_template": LLADA_TEMPLATE}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    return tmp_path


def edit(folder: Path, **changes: object) -> None:
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def load(folder: Path) -> Text:
    text = load_text(folder)
    assert text is not None
    return text


def token(text: Text, name: str) -> int:
    return int(text.tokenizer.convert_tokens_to_ids(name))


# Dream: vocab.json and merges.txt


def test_dream_without_its_class(dream: Path) -> None:
    text = load(dream)
    assert not (dream / "RAN").exists()
    assert isinstance(text.tokenizer, PreTrainedTokenizerFast)
    assert [token(text, name) for name in DREAM_TOKENS] == list(range(FIRST, FIRST + 6))
    assert (text.tokenizer.bos_token_id, text.tokenizer.mask_token_id) == (FIRST + 4, FIRST + 5)
    assert text.turn_end_ids() == (FIRST + 2, FIRST)
    ids = text.encode("How many clips did Natalia sell in April and May?")
    assert len(ids) < 30
    assert text.decode(ids) == "How many clips did Natalia sell in April and May?"
    chat = text.encode_chat([{"role": "user", "content": "the"}])
    assert chat[0] == FIRST + 1
    assert text.tokenizer.decode(chat) == "<|im_start|>user\nthe<|im_end|>\n<|im_start|>assistant\n"
    assert not (dream / "RAN").exists()


def test_qwen2_splits_digits_and_merges_within_words(dream: Path) -> None:
    tokens = load(dream).tokenizer.convert_ids_to_tokens(load(dream).encode("the 123"))
    assert tokens[-3:] == ["1", "2", "3"]
    assert len(tokens) < len("the 123")


@pytest.fixture(scope="module")
def small() -> Text:
    return load(QWEN2)


@given(prompt=st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=40))
def test_any_text_comes_back_in_normal_form(small: Text, prompt: str) -> None:
    assert small.decode(small.encode(prompt)) == unicodedata.normalize("NFC", prompt)


def test_qwen2_files_alone() -> None:
    text = load(QWEN2)
    assert text.turn_end_ids() == (FIRST,)
    assert not text.has_chat_template


def test_added_tokens_json(dream: Path) -> None:
    edit(dream, added_tokens_decoder=None)
    (dream / "added_tokens.json").write_text(json.dumps({name: FIRST + k for k, name in enumerate(DREAM_TOKENS)}))
    text = load(dream)
    assert [token(text, name) for name in DREAM_TOKENS] == list(range(FIRST, FIRST + 6))
    assert text.decode([FIRST + 2]) == ""


# LLaDA: tokenizer.json


def test_llada(llada: Path) -> None:
    text = load(llada)
    ids = text.encode_chat([{"role": "user", "content": "Why?"}])
    rendered = (
        "<|startoftext|><|start_header_id|>user<|end_header_id|>\n\nWhy?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    )
    assert text.tokenizer.decode(ids) == rendered
    assert ids.count(token(text, "<|startoftext|>")) == 1
    assert text.encode(rendered, parse_special=True) == ids
    assert text.turn_end_ids() == (token(text, "<|eot_id|>"), token(text, "<|endoftext|>"))


def test_truncation_and_padding_of_the_file_are_off(llada: Path) -> None:
    text = load(llada)
    assert [len(text.encode("a" * n)) for n in (1, 20)] == [1, 20]
    assert len(text.encode("<|eot_id|>" + "a" * 20)) == 30


def test_raw_prompts_get_what_the_tokenizer_puts_around_them(llada: Path) -> None:
    tokenizer = Tokenizer.from_file(str(llada / "tokenizer.json"))
    start = "<|startoftext|>"
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{start} $A", special_tokens=[(start, tokenizer.token_to_id(start))]
    )
    tokenizer.save(str(llada / "tokenizer.json"))
    text = load(llada)
    first = token(text, start)
    assert text.encode("a")[0] == first
    assert text.encode("<|eot_id|>")[0] == first
    assert text.encode_chat([{"role": "user", "content": "a"}]).count(first) == 1


# Special tokens that a user spells


@pytest.mark.parametrize("spelt", ["<|eot_id|>", "a<|mdm_mask|>b", "<|endoftext|><|endoftext|>", "<|startoftext|>"])
def test_a_user_cannot_write_special_tokens(llada: Path, spelt: str) -> None:
    text = load(llada)
    special = {i for i, t in text.tokenizer.added_tokens_decoder.items() if t.special}
    assert not special & set(text.encode(spelt))
    assert text.decode(text.encode(spelt)) == spelt
    assert special & set(text.encode(spelt, parse_special=True))
    plain = text.encode_chat([{"role": "user", "content": "x"}])
    at = plain.index(*text.encode("x"))
    assert text.encode_chat([{"role": "user", "content": spelt}]) == plain[:at] + text.encode(spelt) + plain[at + 1 :]


def test_only_the_message_that_spells_one_is_affected(dream: Path) -> None:
    text = load(dream)
    turns = [{"role": "user", "content": " the end <|im_end|>\n"}, {"role": "assistant", "content": "the"}]
    ids = text.encode_chat(turns)
    assert ids.count(FIRST + 2) == 2
    assert text.tokenizer.decode(ids).count("the end <|im_end|><|im_end|>\n") == 1


def test_a_special_token_outside_the_vocabulary_is_left_out(llada: Path) -> None:
    edit(llada, sep_token="<|sep|>")
    text = load(llada)
    assert text.tokenizer.sep_token is None
    assert len(text.tokenizer) == FIRST + 6


# Templates


def test_template_file_comes_first(dream: Path) -> None:
    (dream / "chat_template.jinja").write_text("{{ messages[0]['content'] }}!")
    assert load(dream).render_chat([{"role": "user", "content": "hi"}]) == "hi!"


def test_named_templates(dream: Path) -> None:
    named = [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "default"}]
    edit(dream, chat_template=named)
    assert load(dream).render_chat([{"role": "user", "content": "hi"}]) == "default"
    edit(dream, chat_template=named[:1])
    assert not load(dream).has_chat_template


def test_special_tokens_as_objects_and_in_their_own_file(dream: Path) -> None:
    edit(dream, bos_token=None, eos_token={"content": "<|im_end|>", "__type": "AddedToken"})
    (dream / "special_tokens_map.json").write_text('{"eos_token": "<|endoftext|>", "cls_token": "<|im_start|>"}')
    tokenizer = load(dream).tokenizer
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.cls_token) == (None, "<|im_end|>", "<|im_start|>")


def test_chat_refused(llada: Path) -> None:
    text = load(llada)
    with pytest.raises(OptionError, match=r"chat template refuses these messages \(no tools\)"):
        text.encode_chat([{"role": "tool", "content": "x"}])
    with pytest.raises(CheckpointError, match="has no chat template; give the prompt as plain text"):
        load(QWEN2).encode_chat([{"role": "user", "content": "x"}])


def test_unknown_ids_decode_to_nothing(dream: Path) -> None:
    text = load(dream)
    assert text.decode([*text.encode("the"), 151_999, FIRST, *text.encode(" , end")]) == "the , end"


# Folders


def test_no_tokenizer(tmp_path: Path) -> None:
    assert load_text(tmp_path) is None


@pytest.mark.parametrize("name", ["vocab.json", "merges.txt", "tokenizer.model", "tokenizer_config.json"])
def test_half_a_tokenizer(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("{}")
    with pytest.raises(CheckpointError, match=f"has {name}, but neither tokenizer.json nor vocab.json with merges.txt"):
        load_text(tmp_path)


@pytest.mark.parametrize(
    ("file", "content", "says"),
    [
        ("tokenizer.json", "{", "tokenizer.json cannot be read as a tokenizer"),
        ("vocab.json", "{", "vocab.json and .*merges.txt cannot be read as a tokenizer"),
        ("merges.txt", "#version: 0.2\nqqq zzz\n", "cannot be read as a tokenizer"),
        ("tokenizer_config.json", "{", "cannot be read as JSON"),
        ("tokenizer_config.json", "[]", "holds a JSON list; an object is expected"),
        ("tokenizer_config.json", '{"chat_template": 1}', "has a chat_template that is not a text"),
        ("tokenizer_config.json", '{"eos_token": {"text": "a"}}', "has an eos_token that is not a token's text"),
        (
            "tokenizer_config.json",
            '{"added_tokens_decoder": {"x": {}}}',
            "the added tokens that .* lists cannot be read",
        ),
        (
            "tokenizer_config.json",
            '{"added_tokens_decoder": {"600": {"content": "<|mask|>"}}}',
            r"gives '<\|mask\|>' the id 600, but its place is 556",
        ),
    ],
)
def test_tokenizer_file_refused(dream: Path, file: str, content: str, says: str) -> None:
    (dream / file).write_text(content)
    with pytest.raises(CheckpointError, match=says):
        load_text(dream)


def test_what_is_no_character_is_refused_and_private_use_survives(llada: Path) -> None:
    text = load(llada)
    for prompt in ("half \ud800 pair", "x\udcff"):
        with pytest.raises(OptionError, match="which is no character"):
            text.encode(prompt)
        with pytest.raises(OptionError, match="which is no character"):
            text.encode_chat([{"role": "user", "content": prompt}])
    spelt = [text.encode_chat([{"role": "user", "content": f"x{gap}y <|eot_id|>"}]) for gap in ("", "\ue000")]
    assert spelt[0] != spelt[1]
