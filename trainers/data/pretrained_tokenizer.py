"""Open a published tokenizer, from a folder or the Hugging Face hub, by its tokenizer.json.

The classes of `transformers` rebuild a tokenizer from the vocabulary of that file by their own
rules and omit its splits and normalisers, which changes the ids. They are used only if there is no
tokenizer.json. The separator between documents is named in other files of the folder, which are
read as data.
"""

import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tokenizers

from trainers.data import sources
from trainers.data.hub import errors_of_the_client, gave_no_answer, local_folder
from trainers.data.tokenizer_parts import TokenizerParts
from trialstore.errors import InputError, NoAnswerError
from trialstore.storage import unreadable

log = logging.getLogger(__name__)

TOKENIZER, CONFIG = "tokenizer.json", "tokenizer_config.json"
#: Files that name special tokens by text, and files that name them by id.
_NAMING_TEXT = (CONFIG, "special_tokens_map.json")
_NAMING_ID = ("config.json", "generation_config.json")
#: Special tokens that can separate documents, in order of preference.
_ROLES = ("eos", "sep", "bos")

#: A text whose ids differ between tokenizers that divide or normalise differently: scripts, accents
#: in both forms, case, digits, runs of white space, line ends, quotes, code, emoji, control codes.
PROBE = (
    "The quick brown fox can't jump; it's 12345678 times 3.14159, e.g. 1,000,000!\n\n"
    "  def f(x, *args):\r\n\t\treturn x[0] ** 2  # naïve café nai\u0308ve \ufb01 "
    "\uff21\uff22\uff23 \u00bd\n\n\n   \t x=={'a': \"b\"}\\n</p>&amp; foo_bar fooBar FOO'S I'LL "
    "https://example.org/?q=1&r=a%20b\r\r\n"
    "ß ẞ İ \u0131 Ǆ Straße ΟΔΟΣ όδος Москва й и\u0306 שָׁלוֹם السَّلام हिन्दी ไทยภาษา 한국어 "
    "\u1112\u1161\u11ab 日本語のテキスト、中文文本。\uff11\uff12\uff13\u3000\uff41 "
    "\U0001f469\u200d\U0001f467 \U0001f1e9\U0001f1ea \u263a\ufe0f \U0001f600"
    "\u00a0\u2009\u200b\u2028\ufeff«…» — “q” \u2018q\u2019 \x00\x07\x7f\u0085 ▁Ġ ##a end  "
)


@dataclass(frozen=True)
class Published:
    """A published tokenizer.

    Attributes:
        backend: the tokenizer as its file defines it.
        separator: the id between documents.
        remarks: sentences for the user.
    """

    backend: tokenizers.Tokenizer
    separator: int
    remarks: tuple[str, ...] = ()


def open_published(config: sources.PretrainedTokenizer) -> Published:
    """Open a tokenizer from its folder or from the hub.

    Raises:
        InputError: the tokenizer cannot be found, opened or used.
    """
    folder = local_folder("tokenizer pretrained", config.path) or _fetched(config)
    if (folder / TOKENIZER).exists():
        return _from_file(folder, config.path)
    return _from_transformers(config)


def published_at_hand(config: sources.PretrainedTokenizer) -> Published | None:
    """Open a tokenizer from its folder or from the local cache of the hub's client.

    Returns:
        None if opening it needs a request to the hub.

    Raises:
        InputError: the tokenizer cannot be used.
    """
    if local_folder("tokenizer pretrained", config.path):
        return open_published(config)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        folder = Path(
            snapshot_download(config.path, revision=config.revision, local_files_only=True)
        )
    except LocalEntryNotFoundError:
        return None
    if not (folder / TOKENIZER).exists():
        return None  # the cache does not show whether the repository has that file
    return _from_file(folder, config.path)


def _fetched(config: sources.PretrainedTokenizer) -> Path:
    """Download the tokenizer's files of a repository and return their folder."""
    from huggingface_hub import snapshot_download

    try:
        return Path(
            snapshot_download(
                config.path,
                revision=config.revision,
                allow_patterns=[TOKENIZER, *_NAMING_TEXT, *_NAMING_ID],
            )
        )
    except errors_of_the_client() as error:
        raise _unusable(config.path, repr(error), error) from error


def _unusable(shown: str, why: str, error: Exception) -> InputError:
    kind = NoAnswerError if gave_no_answer(error) else InputError
    return kind(
        f"tokenizer pretrained: {shown!r} cannot be opened: {why}; give a folder with a "
        "tokenizer.json, or the id of a model on the Hugging Face hub"
    )


def _from_file(folder: Path, shown: str) -> Published:
    path = folder / TOKENIZER
    backend = from_file(path, shown)
    _check(backend, shown)
    kept = tokenizers.Tokenizer.from_str(backend.to_str())
    if probe_ids(kept) != probe_ids(backend):
        raise InputError(
            f"tokenizer pretrained: {path}: tokenizers {tokenizers.__version__} gives other ids "
            "for a probe text after writing and reading this tokenizer; save the file with this "
            "version of the library, or use another tokenizer"
        )
    separator, remarks = _separator(folder, backend, shown)
    return Published(backend, separator, remarks)


def from_file(path: Path, shown: str) -> tokenizers.Tokenizer:
    """Open a tokenizer.json.

    Args:
        path: the file.
        shown: the tokenizer's name in messages, as the user wrote it.

    Raises:
        InputError: the file is missing or is no tokenizer.
    """
    try:
        return tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing narrower, even for a missing file
        raise _unusable(shown, f"{path.name}: {error}", error) from error


def probe_ids(backend: tokenizers.Tokenizer) -> list[int] | str:
    """Return the ids of the probe text without special tokens, or the error's message."""
    try:
        return list(backend.encode(PROBE, add_special_tokens=False).ids)
    except Exception as error:  # the library raises nothing narrower if text has no token
        return str(error)


def _check(backend: tokenizers.Tokenizer, shown: str) -> None:
    """Refuse a tokenizer without a vocabulary, or with random merges (dropout)."""
    if backend.get_vocab_size(with_added_tokens=False) < 2:  # built from the configuration alone
        raise InputError(
            f"tokenizer pretrained: {shown!r} holds no vocabulary; give a folder with a "
            "tokenizer.json, such as save_pretrained of transformers writes"
        )
    dropout = TokenizerParts(json.loads(backend.to_str())).dropout
    if dropout:
        raise InputError(
            f"tokenizer pretrained: {shown!r} leaves out merges at random (dropout {dropout}), so "
            f"the ids of a text vary; set dropout to null in a copy of its {TOKENIZER}"
        )


def _from_transformers(config: sources.PretrainedTokenizer) -> Published:
    """Open a tokenizer without a tokenizer.json through `transformers`."""
    folder = local_folder("tokenizer pretrained", config.path)
    import transformers

    try:
        loaded = transformers.AutoTokenizer.from_pretrained(
            str(folder or config.path), revision=config.revision, trust_remote_code=False
        )
    # OSError: not found or not reachable. ValueError, KeyError: files of no known tokenizer.
    except (OSError, ValueError, KeyError) as error:
        raise _unusable(config.path, repr(error), error) from error
    backend = getattr(loaded, "backend_tokenizer", None)
    if not isinstance(backend, tokenizers.Tokenizer):
        raise InputError(
            f"tokenizer pretrained: {config.path!r} ({type(loaded).__name__}) has no "
            "tokenizer.json form; convert it with transformers' save_pretrained, or use another "
            "tokenizer"
        )
    _check(backend, config.path)
    remark = (
        f"tokenizer {config.path!r} has no tokenizer.json: its ids are those that "
        f"{type(loaded).__name__} of transformers {transformers.__version__} builds from its other "
        "files, and another version may build others"
    )
    for separator in (loaded.eos_token_id, loaded.sep_token_id, loaded.bos_token_id):
        if separator is not None:
            return Published(backend, int(separator), (remark,))
    raise _no_separator(config.path)


# --- the separator -------------------------------------------------------------------------


def _separator(
    folder: Path, backend: tokenizers.Tokenizer, shown: str
) -> tuple[int, tuple[str, ...]]:
    """Return the id of the token between documents, and remarks about it."""
    named = {name: _object(folder / name) for name in _NAMING_TEXT}
    for role in _ROLES:
        found = {
            name: text
            for name, content in named.items()
            if (text := _token_text(content.get(f"{role}_token"), folder / name, role)) is not None
        }
        if found:
            text = next(iter(found.values()))
            separator = backend.token_to_id(text)
            if separator is None:
                raise InputError(
                    f"tokenizer pretrained: {shown!r}: {next(iter(found))} names {text!r} as "
                    f"{role}_token, but {TOKENIZER} has no such token; name one of its tokens as "
                    f"{role}_token, in a copy of the folder if it is not yours"
                )
            return int(separator), _disagreement(found, named[CONFIG], role, shown)
    for name in _NAMING_ID:
        content = _object(folder / name)
        for role in _ROLES:
            ids = list(_ids(content.get(f"{role}_token_id"), folder / name, role))
            if len(ids) > 1:
                raise InputError(
                    f"tokenizer pretrained: {shown!r}: {name} names several tokens as {role} "
                    f"({', '.join(map(str, ids))}), but documents need one separator; set "
                    f"eos_token in {CONFIG}, in a copy of the folder if it is not yours"
                )
            if ids:
                if backend.id_to_token(ids[0]) is None:
                    raise InputError(
                        f"tokenizer pretrained: {shown!r}: {name} names {ids[0]} as "
                        f"{role}_token_id, but {TOKENIZER} has no such id; set eos_token in "
                        f"{CONFIG}, in a copy of the folder if it is not yours"
                    )
                return ids[0], ()
    raise _no_separator(shown)


def _no_separator(shown: str) -> InputError:
    return InputError(
        f"tokenizer pretrained: {shown!r} has no eos, sep or bos token to separate documents; set "
        f"eos_token in its {CONFIG}"
    )


def _disagreement(
    found: dict[str, str], config: dict[str, Any], role: str, shown: str
) -> tuple[str, ...]:
    """Return a remark, or raise InputError, if two files name different tokens.

    `transformers` prefers tokenizer_config.json if that file describes its added tokens, and the
    other file if it does not.
    """
    if len(set(found.values())) < 2:
        return ()
    said = " and ".join(f"{text!r} in {name}" for name, text in found.items())
    if "added_tokens_decoder" in config:
        return (f"tokenizer {shown!r}: {role}_token is {said}; the first separates documents",)
    raise InputError(
        f"tokenizer pretrained: {shown!r}: {role}_token is {said}, but documents need one "
        "separator; name the same token in both, in a copy of the folder if it is not yours"
    )


def _object(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file, empty if there is no file."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (ValueError, OSError, RecursionError) as error:
        raise unreadable(
            f"tokenizer pretrained: {path} cannot be read: {error}; repair or remove it", error
        ) from error
    if not isinstance(content, dict):
        raise InputError(f"tokenizer pretrained: {path} holds no JSON object; repair or remove it")
    return content


def _token_text(value: object, path: Path, role: str) -> str | None:
    """Return the text of a token, given as a string or as an object with its matching options."""
    if isinstance(value, dict):
        value = value.get("content")
    if value is None or isinstance(value, str):
        return value
    raise InputError(
        f"tokenizer pretrained: {path}: {role}_token is {value!r}; it must be a text or null"
    )


def _ids(value: object, path: Path, role: str) -> Iterator[int]:
    """Yield the distinct ids that a file names."""
    if value is None:
        return
    for one in dict.fromkeys(value) if isinstance(value, list) else (value,):
        if not isinstance(one, int) or isinstance(one, bool):
            raise InputError(
                f"tokenizer pretrained: {path}: {role}_token_id is {value!r}; it must be an id, a "
                "list of ids or null"
            )
        yield one
