"""Files: errors that say what, which file, why and what to do; digests; suggestions of names."""

import hashlib
from pathlib import Path

import pytest

from caplet.errors import ArtefactError, ConfigError, nearest, suggest
from caplet.files import access, digest, file_digest, read_json, read_text, read_toml, write_bytes, write_json


def test_errors_say_what_which_why_and_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "none.json"
    with pytest.raises(ArtefactError, match=r"^cannot read the plan .*none\.json: no such file or directory$"):
        read_json(path, "the plan")
    with pytest.raises(ConfigError, match=r"^cannot read .*none\.json: no such file or directory; look again$"):
        read_toml(path, todo="look again", kind=ConfigError)
    write_bytes(path, b"\xff")
    with pytest.raises(ArtefactError, match="not a text file in UTF-8"):
        read_text(path)
    with pytest.raises(
        ArtefactError, match=r"^cannot write the plan .*none\.json/plan\.json: (not a directory|file ex)"
    ):
        write_json(path / "plan.json", {}, "the plan")
    with pytest.raises(ArtefactError, match=r"^cannot remove x: gone$"), access("remove", "x"):
        raise OSError("gone")
    write_bytes(path, b"{")
    with pytest.raises(ArtefactError, match=r"none\.json is not valid JSON \(.*\); make it anew$"):
        read_json(path, todo="make it anew")
    with pytest.raises(ArtefactError, match=r"none\.json is not a TOML file: "):
        read_toml(path)


def test_deeply_nested_json_is_an_error_of_the_file(tmp_path: Path) -> None:
    write_bytes(tmp_path / "deep.json", b"[" * 100_000)
    with pytest.raises(ArtefactError, match="not valid JSON"):
        read_json(tmp_path / "deep.json")


def test_one_digest_for_texts_bytes_and_files(tmp_path: Path) -> None:
    expected = hashlib.sha256(b"abc").hexdigest()
    write_bytes(tmp_path / "file", b"abc")
    assert digest("abc") == digest(b"a", memoryview(b"bc")) == file_digest(tmp_path / "file") == expected
    assert file_digest(tmp_path / "file", "md5") == hashlib.md5(b"abc", usedforsecurity=False).hexdigest()


def test_the_nearest_name_is_found_in_any_case() -> None:
    assert suggest("Minst", ("mnist", "cifar10")) == "; did you mean 'mnist'?"
    assert suggest("zzz", ("mnist", "cifar10")) == ""
    assert nearest("digit.vote", ("digit.votes", "x"), 0.8) == "digit.votes"
