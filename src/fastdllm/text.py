"""Text to token ids and back, through the tokenizer and the chat template of a checkpoint.

The files are read as data: ``tokenizer.json``, or ``vocab.json`` and ``merges.txt`` through transformers'
Qwen2 tokenizer. A class that the checkpoint names or ships (Dream's ``tokenization_dream.py``) is never
looked up. The chat template is Jinja, which transformers renders in its sandbox.

What a user writes is text: in a raw prompt and in a chat message, characters that spell a special token
(``<|eot_id|>``) are encoded as those characters. Only the template's own special tokens are tokens.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import transformers
from jinja2 import TemplateError
from tokenizers import AddedToken, Tokenizer
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

from fastdllm.errors import CheckpointError, OptionError

TURN_ENDS = ("<|eot_id|>", "<|im_end|>", "<|endoftext|>")

SPECIAL_NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")

TRACES = ("vocab.json", "merges.txt", "tokenizer.model", "tokenizer_config.json")

BREAKS = [chr(code) for code in range(0xE000, 0xF900)]  # private use: one breaks up a special token's spelling


class Text:
    """A checkpoint's tokenizer; :func:`load_text` makes one."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self.tokenizer = tokenizer
        self._added: dict[str, int] = {str(token): index for index, token in tokenizer.added_tokens_decoder.items()}
        special = [str(token) for token in tokenizer.added_tokens_decoder.values() if token.special]
        # Longest first, as the tokenizers library matches; (?!) matches nothing.
        spellings = "|".join(map(re.escape, sorted(special, key=len, reverse=True)))
        self._special = re.compile(spellings or "(?!)")

    @property
    def has_chat_template(self) -> bool:
        return self.tokenizer.chat_template is not None

    def encode(self, text: str, *, parse_special: bool = False) -> list[int]:
        """Token ids of a raw prompt, with what the tokenizer itself puts around a text (mostly nothing).

        Args:
            parse_special: read ``<|eot_id|>`` and the like as tokens, for text that a program rendered
                from a template; otherwise they are the user's characters.
        """
        if parse_special or not self._special.search(_valid(text)):
            return list(self.tokenizer.encode(text))
        return self._literal.encode(text).ids

    def encode_chat(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """Token ids of a conversation, ready for the assistant's next turn.

        Args:
            messages: each with ``role`` (``"system"``, ``"user"`` or ``"assistant"``) and ``content``.

        Raises:
            CheckpointError: the checkpoint has no chat template.
            OptionError: the template refuses the messages (roles that do not alternate, for example).
        """
        said = "".join(_valid(value) for turn in messages for value in turn.values())
        if not self._special.search(said):
            return list(self.tokenizer.encode(self.render_chat(messages), add_special_tokens=False))
        gap = next(character for character in BREAKS if character not in said)
        broken = [{k: self._special.sub(partial(_broken, gap), v) for k, v in turn.items()} for turn in messages]
        rendered = self.render_chat(broken)
        # Some message spells a special token: cut at the template's own ones, and take the rest as characters.
        ids, start = [], 0
        for match in self._special.finditer(rendered):
            ids += self._characters(rendered[start : match.start()].replace(gap, ""))
            ids.append(self._added[match.group()])
            start = match.end()
        return ids + self._characters(rendered[start:].replace(gap, ""))

    def render_chat(self, messages: Sequence[Mapping[str, str]]) -> str:
        """The conversation as one text, ending where the assistant's next turn begins.

        Raises:
            CheckpointError, OptionError: as :meth:`encode_chat`.
        """
        if not self.has_chat_template:
            raise CheckpointError("this checkpoint's tokenizer has no chat template; give the prompt as plain text.")
        turns = [dict(turn) for turn in messages]
        try:
            return str(self.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))
        except TemplateError as error:
            raise OptionError(f"the checkpoint's chat template refuses these messages ({error}).") from None

    def decode(self, ids: Sequence[int]) -> str:
        """Text of token ids, without special tokens; ids that the tokenizer does not know give nothing."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def token(self, index: int) -> str:
        """How the vocabulary spells one id, special tokens included; empty for an id it does not know."""
        return str(self.tokenizer.convert_ids_to_tokens(index) or "")

    def turn_end_ids(self) -> tuple[int, ...]:
        """Ids at which an answer may end, of :data:`TURN_ENDS` those that this tokenizer has as added tokens."""
        return tuple(self._added[name] for name in TURN_ENDS if name in self._added)

    def _characters(self, text: str) -> list[int]:
        return self._literal.encode(text, add_special_tokens=False).ids

    @cached_property
    def _literal(self) -> Tokenizer:
        """A copy that takes special tokens for characters; a switch on the one object would race with threads."""
        copy = Tokenizer.from_str(self.tokenizer.backend_tokenizer.to_str())
        copy.encode_special_tokens = True
        return copy


def load_text(folder: Path) -> Text | None:
    """The tokenizer of a checkpoint folder; None when the folder has no file of any tokenizer.

    Raises:
        CheckpointError: a file is damaged, or the tokenizer is of a kind that is not read here.
    """
    settings = {**_object(folder / "special_tokens_map.json"), **_object(folder / "tokenizer_config.json")}
    if (folder / "tokenizer.json").is_file():
        backend = _read_tokenizer(folder / "tokenizer.json")
    elif (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
        backend = _read_qwen2(folder, settings)
    elif found := [name for name in TRACES if (folder / name).is_file()]:
        raise CheckpointError(f"{folder} has {found[0]}, but neither tokenizer.json nor vocab.json with merges.txt.")
    else:
        return None
    backend.no_truncation()
    backend.no_padding()
    named = _special_tokens(folder, settings)
    # One that the vocabulary lacks would be added to it, under an id for which the network has no row.
    special = {name: token for name, token in named.items() if backend.token_to_id(token) is not None}
    template = _chat_template(folder, settings)
    return Text(PreTrainedTokenizerFast(tokenizer_object=backend, chat_template=template, **special))


def _read_tokenizer(path: Path) -> Tokenizer:
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the tokenizers library raises bare Exception
        raise CheckpointError(f"{path} cannot be read as a tokenizer ({error}).") from None


def _read_qwen2(folder: Path, settings: Mapping[str, Any]) -> Tokenizer:
    """Qwen2's byte-level BPE with the tokens that the checkpoint adds, each at its own id."""
    vocab_file, merges_file = str(folder / "vocab.json"), str(folder / "merges.txt")
    added = _added_tokens(folder, settings)
    # With tokens of its own named, the class adds none; without, it adds <|endoftext|>.
    special = dict.fromkeys(("unk_token", "eos_token", "pad_token")) if added else {}
    modern = int(transformers.__version__.split(".")[0]) >= 5
    make = getattr(transformers, "Qwen2Tokenizer" if modern else "Qwen2TokenizerFast")
    try:
        vocab, merges = BPE.read_file(vocab_file, merges_file)
        files = {"vocab": vocab, "merges": merges} if modern else {"vocab_file": vocab_file, "merges_file": merges_file}
        backend: Tokenizer = make(**files, **special).backend_tokenizer
    except Exception as error:  # as above
        raise CheckpointError(f"{vocab_file} and {merges_file} cannot be read as a tokenizer ({error}).") from None
    for index, token in sorted(added.items()):
        backend.add_tokens([token])
        found = backend.token_to_id(token.content)
        if found != index:
            raise CheckpointError(f"{folder} gives {token.content!r} the id {index}, but its place is {found}.")
    return backend


def _added_tokens(folder: Path, settings: Mapping[str, Any]) -> dict[int, AddedToken]:
    """Tokens beyond the vocabulary by id: tokenizer_config.json's, else added_tokens.json's, which are all special."""
    try:
        detailed = settings.get("added_tokens_decoder")
        if detailed:
            fields = ("single_word", "lstrip", "rstrip", "normalized", "special")
            return {
                int(index): AddedToken(token["content"], **{name: token[name] for name in fields if name in token})
                for index, token in detailed.items()
            }
        plain = _object(folder / "added_tokens.json")
        return {int(index): AddedToken(token, special=True, normalized=False) for token, index in plain.items()}
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"the added tokens that {folder} lists cannot be read ({error!r}).") from None


def _chat_template(folder: Path, settings: Mapping[str, Any]) -> str | None:
    """chat_template.jinja, else tokenizer_config.json's; of several named ones the default."""
    file = folder / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    template = settings.get("chat_template")
    if isinstance(template, list):
        template = next((entry["template"] for entry in template if entry.get("name") == "default"), None)
    if template is not None and not isinstance(template, str):
        raise CheckpointError(f"{folder} has a chat_template that is not a text.")
    return template


def _special_tokens(folder: Path, settings: Mapping[str, Any]) -> dict[str, str]:
    """The named special tokens, each given as its text or as an object with the text as ``content``."""
    special: dict[str, str] = {}
    for name in SPECIAL_NAMES:
        value = settings.get(name)
        text = value.get("content") if isinstance(value, dict) else value
        if value is not None and not isinstance(text, str):
            raise CheckpointError(f"{folder} has an {name} that is not a token's text.")
        if text is not None:
            special[name] = text
    return special


def _object(path: Path) -> dict[str, Any]:
    """The JSON object in a file; empty when there is no such file."""
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON ({error}).") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds a JSON {type(content).__name__}; an object is expected.")
    return content


def _broken(gap: str, match: re.Match[str]) -> str:
    """The spelling with a gap after its first character, so that it is no token."""
    return match.group()[0] + gap + match.group()[1:]


def _valid(text: str) -> str:
    """The text, if every tokenizer can take it: half a surrogate pair is no character."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise OptionError(f"the prompt has {text[error.start]!a} at {error.start}, which is no character.") from None
    return text
