"""Where Java, Kafka's jars and ports come from: what is there is used, what is missing is said, nothing is half."""

import random
import socket
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from infra.local import jars, java
from infra.local.errors import MissingError
from infra.local.ports import free_port, is_free


def make_java(home: Path, version: str) -> Path:
    program = home / "bin" / "java"
    program.parent.mkdir(parents=True)
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    (home / "release").write_text(f'IMPLEMENTOR="Somebody"\nJAVA_VERSION="{version}"\n')
    return program


@pytest.fixture
def no_java(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("JAVA_HOME", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    monkeypatch.setattr(java, "_packaged_java", lambda: None)


@pytest.mark.usefixtures("no_java")
def test_java_home_comes_before_the_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    home, path = make_java(tmp_path / "home", "21.0.4"), make_java(tmp_path / "path", "25.0.1")
    monkeypatch.setenv("PATH", str(path.parent))
    assert java.find_java() == java.Java(path, "25.0.1")
    monkeypatch.setenv("JAVA_HOME", str(home.parent.parent))
    assert java.find_java() == java.Java(home, "21.0.4")


@pytest.mark.usefixtures("no_java")
@pytest.mark.parametrize("old", ["1.8.0_412", "11.0.23", "not a version"])
def test_an_old_java_is_passed_over(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, old: str) -> None:
    monkeypatch.setenv("JAVA_HOME", str(make_java(tmp_path / "old", old).parent.parent))
    packaged = make_java(tmp_path / "packaged", "25.0.2")
    monkeypatch.setattr(java, "_packaged_java", lambda: str(packaged))
    assert java.find_java().path == packaged


@pytest.mark.usefixtures("no_java")
def test_no_java_says_what_to_do() -> None:
    with pytest.raises(MissingError, match=r"no Java 17 or later: install the extra with `pip install"):
        java.find_java()


@pytest.fixture
def downloads(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Path]:
    """Every download made, into a cache of its own; each brings two small jars."""
    made: list[Path] = []

    def download(work: Path, _: jars.Wanted) -> list[Path]:
        made.append(work)
        brought = [work / "b.jar", work / "a.jar"]
        for jar in brought:
            jar.write_bytes(b"jar")
        return brought

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(jars, "_download", download)
    return made


def test_jars_are_downloaded_once(downloads: list[Path]) -> None:
    with ThreadPoolExecutor(4) as pool:  # locks are between open files, so threads contend as processes do
        jar_sets = {pool.submit(jars.kafka_jars, lambda _: None).result() for _ in range(4)}
    assert len(downloads) == 1
    assert [[jar.name for jar in each.jars] for each in jar_sets] == [["a.jar", "b.jar"]]
    assert not downloads[0].exists(), "the working folder is removed"


@pytest.mark.parametrize("damage", [lambda jar: jar.unlink(), lambda jar: jar.write_bytes(b"half")])
def test_a_damaged_folder_is_brought_again(downloads: list[Path], damage: object) -> None:
    assert callable(damage)
    damage(jars.kafka_jars(lambda _: None).jars[0])
    assert [jar.read_bytes() for jar in jars.kafka_jars(lambda _: None).jars] == [b"jar", b"jar"]
    assert len(downloads) == 2


def test_a_failed_download_leaves_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setitem(sys.modules, "jgo", None)
    with pytest.raises(MissingError, match=r"jgo is not installed: `pip install 'margin-clearing\[local\]'`"):
        jars.kafka_jars(lambda _: None)
    assert [path.name for path in jars.cache_folder().iterdir()] == ["lock"]


def test_a_cache_that_cannot_be_written_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(MissingError, match="set XDG_CACHE_HOME"):
        jars.kafka_jars(lambda _: None)


def test_no_port_is_given_twice_whoever_seeds_the_shared_generator() -> None:
    """A broker's two listeners take theirs one after the other, before it listens on either."""
    ports = []
    for _ in range(200):
        random.seed(7)
        ports.append(free_port())
    assert len(set(ports)) == len(ports)


def test_a_free_port_is_free_until_it_is_taken() -> None:
    port = free_port()
    assert is_free(port)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", port))
        taken.listen()
        assert not is_free(port)
