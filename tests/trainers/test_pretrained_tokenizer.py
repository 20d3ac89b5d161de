"""A published tokenizer is its tokenizer.json, and its separator stands in the files beside it."""

import json
import logging
from pathlib import Path

import huggingface_hub
import pytest
import tokenizers
from odd_tokenizers import END, ODD, byte_level_split, publish, words
from tokenizers import AddedToken, models
from transformers import AutoTokenizer, GPT2Tokenizer

from trainers.data import pretrained_tokenizer as module
from trainers.data.pretrained_tokenizer import PROBE
from trainers.data.sources import PretrainedTokenizer
from trainers.data.tokenizer import ByteTokenizer, Tokenizer, open_tokenizer, pretrained_at_hand
from trialstore.errors import InputError

#: Where the two ways of opening part: a split that GPT-2 does not have.
TEXT = "I'LL pay 12345678 dollars;\n\n  won't you?  é 2024\r\n"


def opened(folder: Path) -> Tokenizer:
    return open_tokenizer(PretrainedTokenizer(path=str(folder)), None, folder)


def ids_of_file(folder: Path, text: str) -> list[int]:
    backend = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    return list(backend.encode(text, add_special_tokens=False).ids)


@pytest.mark.parametrize("name", ODD)
def test_ids_are_those_of_the_file(name: str, tmp_path: Path) -> None:
    folder = publish(ODD[name](), tmp_path)
    text = PROBE if name != "byte_level_added" else PROBE + " fox\n jump é"
    tokenizer = opened(folder)
    assert tokenizer.encode_batch([text])[0].tolist() == ids_of_file(folder, text)
    again = opened(tokenizer.save(tmp_path / "again").parent)
    assert again.encode_batch([text])[0].tolist() == ids_of_file(folder, text)
    assert (again.hash, again.separator) == (tokenizer.hash, tokenizer.separator)


def test_a_class_that_would_divide_text_in_another_way_is_not_asked(tmp_path: Path) -> None:
    folder = publish(byte_level_split(), tmp_path, tokenizer_class="GPT2Tokenizer")
    rebuilt = AutoTokenizer.from_pretrained(folder)
    assert isinstance(rebuilt, GPT2Tokenizer)
    expected = ids_of_file(folder, TEXT)
    assert rebuilt(TEXT, add_special_tokens=False)["input_ids"] != expected
    assert opened(folder).encode_batch([TEXT])[0].tolist() == expected


def test_without_a_tokenizer_json_transformers_is_asked_and_that_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = byte_level_split().model.save(str(tmp_path))
    assert [Path(name).name for name in path] == ["vocab.json", "merges.txt"]
    (tmp_path / "tokenizer_config.json").write_text(
        '{"tokenizer_class": "GPT2Tokenizer", "eos_token": "</s>"}'
    )
    with caplog.at_level(logging.WARNING):
        tokenizer = opened(tmp_path)
    (remark,) = tokenizer.remarks
    assert "has no tokenizer.json: its ids are those that GPT2Tokenizer of transformers" in remark
    assert remark in caplog.text
    assert (
        tokenizer.encode_batch([TEXT])[0].tolist()
        == (AutoTokenizer.from_pretrained(tmp_path)(TEXT)["input_ids"])
    )


def test_merges_left_out_by_chance_are_refused(tmp_path: Path) -> None:
    backend = byte_level_split()
    backend.model.dropout = 0.25
    folder = publish(backend, tmp_path)
    with pytest.raises(InputError, match=r"dropout 0\.25.*tokenizer\.json"):
        opened(folder)


def test_a_library_that_writes_another_tokenizer_than_it_read_is_caught(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = publish(byte_level_split(), tmp_path)
    answers = iter([[1], [2]])
    monkeypatch.setattr(module, "probe_ids", lambda backend: next(answers))
    with pytest.raises(InputError, match=f"{folder / 'tokenizer.json'}: tokenizers "):
        opened(folder)


# --- folders that cannot be used -----------------------------------------------------------


@pytest.mark.parametrize("content", [None, "{ cut", "{}"])
def test_a_folder_without_a_usable_tokenizer_is_named(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "tokenizer.json").write_text(content)
        (tmp_path / "tokenizer_config.json").write_text(
            '{"tokenizer_class": "PreTrainedTokenizerFast"}'
        )
    with pytest.raises(InputError, match=f"pretrained: '{tmp_path}'"):
        opened(tmp_path)


@pytest.mark.parametrize("kind", ["GPT2Tokenizer", "PreTrainedTokenizerFast"])
def test_a_folder_without_a_vocabulary_is_named(tmp_path: Path, kind: str) -> None:
    (tmp_path / "tokenizer_config.json").write_text(f'{{"tokenizer_class": "{kind}"}}')
    with pytest.raises(InputError, match=f"'{tmp_path}'"):
        opened(tmp_path)


def test_a_file_without_a_vocabulary_is_named(tmp_path: Path) -> None:
    folder = publish(tokenizers.Tokenizer(models.BPE()), tmp_path)
    with pytest.raises(InputError, match=f"'{tmp_path}' .*vocabulary"):
        opened(folder)


# --- the separator -------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A tokenizer of whole words with several special tokens, which no file names."""
    backend = words()
    backend.add_special_tokens(["<s>", "[SEP]", "<pad>"])
    publish(backend, tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("{}")
    return tmp_path


def say(folder: Path, name: str, **content: object) -> None:
    (folder / name).write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("said", "token"),
    [
        ({"tokenizer_config.json": {"eos_token": END, "bos_token": "<s>"}}, END),
        ({"tokenizer_config.json": {"eos_token": {"content": END, "lstrip": False}}}, END),
        ({"tokenizer_config.json": {"eos_token": None, "sep_token": "[SEP]"}}, "[SEP]"),
        ({"tokenizer_config.json": {"bos_token": "<s>"}}, "<s>"),
        ({"special_tokens_map.json": {"eos_token": {"content": END}}}, END),
        ({"tokenizer_config.json": {"bos_token": "<s>"},
          "special_tokens_map.json": {"eos_token": END}}, END),
        ({"config.json": {"eos_token_id": 1, "bos_token_id": 12}}, END),
        ({"generation_config.json": {"eos_token_id": [1]}}, END),
        ({"config.json": {"eos_token_id": None}, "generation_config.json": {"bos_token_id": 12}},
         "<s>"),
        ({"tokenizer_config.json": {"sep_token": "[SEP]"}, "config.json": {"eos_token_id": 1}},
         "[SEP]"),
    ],
)  # fmt: skip
def test_the_separator_is_read_from_the_files_beside(folder: Path, said: dict, token: str) -> None:
    for name, content in said.items():
        say(folder, name, **content)
    expected = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json")).token_to_id(token)
    assert opened(folder).separator == expected


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("tokenizer_config.json", {}, "eos, sep or bos"),
        ("tokenizer_config.json", {"pad_token": "<pad>"}, "eos, sep or bos"),
        ("tokenizer_config.json", {"eos_token": "<end>"},
         "tokenizer_config.json names '<end>' as eos_token, .*tokenizer.json"),
        ("tokenizer_config.json", {"eos_token": 7}, "eos_token is 7"),
        ("special_tokens_map.json", {"bos_token": "<begin>"}, "special_tokens_map.json names"),
        ("config.json", {"eos_token_id": [1, 12]}, r"eos \(1, 12\)"),
        ("config.json", {"eos_token_id": 99}, "config.json names 99 as eos_token_id"),
        ("config.json", {"eos_token_id": "1"}, "eos_token_id is '1'"),
        ("config.json", {"eos_token_id": True}, "eos_token_id is True"),
    ],
)  # fmt: skip
def test_a_separator_that_is_missing_or_doubtful_is_refused(
    folder: Path, name: str, content: dict, message: str
) -> None:
    say(folder, name, **content)
    with pytest.raises(InputError, match=message):
        opened(folder)


@pytest.mark.parametrize("content", ["[1]", "{ cut", "7"])
def test_a_file_that_is_no_object_is_named(folder: Path, content: str) -> None:
    (folder / "special_tokens_map.json").write_text(content)
    with pytest.raises(InputError, match=r"special_tokens_map\.json "):
        opened(folder)


def test_two_files_that_disagree_are_refused_or_said(folder: Path) -> None:
    say(folder, "special_tokens_map.json", eos_token="<s>")
    say(folder, "tokenizer_config.json", eos_token=END)
    with pytest.raises(InputError, match=r"'</s>' in tokenizer_config\.json and '<s>' in special"):
        opened(folder)
    # So transformers has it: a configuration that describes its added tokens prevails.
    described = {"1": {"content": END, "special": True}}
    say(folder, "tokenizer_config.json", eos_token=END, added_tokens_decoder=described)
    tokenizer = opened(folder)
    assert tokenizer.separator == 1 == AutoTokenizer.from_pretrained(folder).eos_token_id
    assert "the first separates documents" in tokenizer.remarks[0]


# --- the hub -------------------------------------------------------------------------------


def test_a_hub_tokenizer_is_the_file_of_its_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot = publish(byte_level_split(), tmp_path, tokenizer_class="GPT2Tokenizer")
    asked = []

    def download(name: str, **options: object) -> str:
        asked.append((name, options))
        return str(snapshot)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    config = PretrainedTokenizer(path="owner/model", revision="main")
    for tokenizer in (open_tokenizer(config, None, tmp_path), pretrained_at_hand(config)):
        assert tokenizer.encode_batch([TEXT])[0].tolist() == ids_of_file(snapshot, TEXT)
    (name, options), (_, second) = asked
    assert (name, options["revision"]) == ("owner/model", "main")
    assert "tokenizer.json" in options["allow_patterns"]
    assert not any("safetensors" in one or "*" in one for one in options["allow_patterns"])
    assert second["local_files_only"]


def test_other_files_of_a_repository_are_not_its_tokenizer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A plan asks no hub, and cannot tell whether there is a tokenizer.json that was not fetched:
    one that is built of other files may have other ids."""
    byte_level_split().model.save(str(tmp_path))
    say(tmp_path, "tokenizer_config.json", tokenizer_class="GPT2Tokenizer", eos_token=END)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: str(tmp_path))
    assert pretrained_at_hand(PretrainedTokenizer(path="owner/model")) is None


def test_a_hub_that_does_not_answer_is_an_input_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def download(name: str, **options: object) -> str:
        raise OSError("no route to host")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    with pytest.raises(InputError, match=r"'owner/model'.*no route to host"):
        open_tokenizer(PretrainedTokenizer(path="owner/model"), None, tmp_path)


def test_added_tokens_that_are_not_special_stay_as_the_file_has_them(tmp_path: Path) -> None:
    backend = byte_level_split()
    backend.add_tokens([AddedToken("fox jump", normalized=False)])
    folder = publish(backend, tmp_path)
    number = backend.token_to_id("fox jump")
    assert number in opened(folder).encode_batch(["the fox jumps"])[0]


def test_a_saved_tokenizer_opens_as_it_was(tmp_path: Path) -> None:
    ByteTokenizer().save(tmp_path)
    assert opened(tmp_path).hash == ByteTokenizer().hash
