"""Files: errors that say what, which file, why and what to do; digests; suggestions of names."""

import hashlib
import io
import zipfile
from pathlib import Path

import numpy as np
import pytest

from caplet.errors import ArtefactError, ConfigError, nearest, suggest
from caplet.files import (
    access,
    digest,
    file_digest,
    read_arrays,
    read_json,
    read_text,
    read_toml,
    write_bytes,
    write_json,
)


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
    with pytest.raises(ArtefactError, match=r"none\.json is not a TOML file \("):
        read_toml(path)


def test_deeply_nested_json_is_an_error_of_the_file(tmp_path: Path) -> None:
    write_bytes(tmp_path / "deep.json", b"[" * 100_000)
    with pytest.raises(ArtefactError, match="not valid JSON"):
        read_json(tmp_path / "deep.json")


def _array(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


_CODES = np.full((2, 3), 0x110000, np.uint32)
ENTRIES = {
    "text": (b"not an array", "something else than arrays"),
    "values of no size": (_array(np.zeros(9, "S1")).replace(b"|S1", b"|S0"), "something else than arrays"),
    "no Unicode": (_array(_CODES.view("U3")[:, 0]), "a text is not Unicode"),
    "too short": (_array(np.zeros(3)).replace(b"(3,)", b"(9,)"), "EOF"),
}


@pytest.mark.parametrize("entry", ENTRIES)
def test_damaged_arrays_are_refused(entry: str, tmp_path: Path) -> None:
    data, message = ENTRIES[entry]
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("a.npy", data)
    with pytest.raises(ArtefactError, match=rf"a\.npz is not a sound \.npz file .*({message})"):
        read_arrays(tmp_path / "a.npz")


def test_arrays_that_unpack_to_far_more_than_their_file_are_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive, archive.open("a.npy", "w") as entry:
        for _ in range(300):
            entry.write(bytes(1 << 20))
    with pytest.raises(ArtefactError, match="it unpacks to far more than its size"):
        read_arrays(tmp_path / "a.npz")


def test_one_digest_for_texts_bytes_and_files(tmp_path: Path) -> None:
    expected = hashlib.sha256(b"abc").hexdigest()
    write_bytes(tmp_path / "file", b"abc")
    assert digest("abc") == digest(b"a", memoryview(b"bc")) == file_digest(tmp_path / "file") == expected
    assert file_digest(tmp_path / "file", "md5") == hashlib.md5(b"abc", usedforsecurity=False).hexdigest()


def test_the_nearest_name_is_found_in_any_case() -> None:
    assert suggest("Minst", ("mnist", "cifar10")) == "; did you mean 'mnist'?"
    assert suggest("zzz", ("mnist", "cifar10")) == ""
    assert nearest("digit.vote", ("digit.votes", "x"), 0.8) == "digit.votes"


def test_keys_of_very_many_parts_are_refused_at_once(tmp_path: Path) -> None:
    path = tmp_path / "settings.toml"
    for text in ("a" + ".a" * 50_000 + " = 1", "x = {" + " 'b' ." * 50_000 + "c = 1}"):
        path.write_text(text)
        with pytest.raises(ArtefactError, match=r"is not a TOML file .* has more than 100 parts"):
            read_toml(path)
    path.write_text("# " + "." * 500 + "\n" + "w" * 300_000 + " = 'one. two. three.'\na.b.c = 1.5\n")
    assert read_toml(path)["a"] == {"b": {"c": 1.5}}
