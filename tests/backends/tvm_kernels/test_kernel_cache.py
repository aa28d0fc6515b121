import stat

import pytest

from regraft.backends.tvm._cache import Built, cache_folder, cached, key_of
from regraft.backends.tvm._nvcc import KernelUse, Resources
from regraft.errors import BackendError, OutputError

RESOURCES = Resources((KernelUse("k", 32, 0, 0),), (1024,), ("mma.sync",))


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("REGRAFT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "kernels"


class Maker:
    """Counts how often it is asked."""

    def __init__(self):
        self.times = 0

    def __call__(self):
        self.times += 1
        return Built("source", b"library", RESOURCES)


def test_what_was_built_is_not_built_again():
    make = Maker()
    first, second = cached("key", {}, make), cached("key", {}, make)
    assert make.times == 1
    assert first == second
    assert first.library.read_bytes() == b"library"
    assert first.resources == RESOURCES


@pytest.mark.parametrize("name", ["kernel.so", "kernel.cu", "kernel.json"])
@pytest.mark.parametrize("damage", ["changed", "gone", "cut"])
def test_a_damaged_entry_is_built_again(name, damage):
    make = Maker()
    path = cached("key", {}, make).library.with_name(name)
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(b"{}" if damage == "changed" else path.read_bytes()[:3])
    assert cached("key", {}, make).library.read_bytes() == b"library"
    assert make.times == 2


def test_only_the_owner_can_enter_folders_and_read_files(folder):
    entry = cached("key", {}, Maker())
    assert [stat.S_IMODE(path.stat().st_mode) for path in (folder, entry.library.parent)] == [0o700, 0o700]
    assert {stat.S_IMODE(path.stat().st_mode) for path in entry.library.parent.iterdir()} == {0o600}


def test_a_folder_that_others_can_enter_is_closed_to_them(folder):
    folder.mkdir(parents=True, mode=0o755)
    cached("key", {}, Maker())
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_a_folder_of_another_user_is_refused(monkeypatch):
    monkeypatch.setattr("os.getuid", lambda: 12345)
    with pytest.raises(OutputError, match="belongs to another user"):
        cached("key", {}, Maker())


def test_a_build_that_fails_leaves_nothing_that_looks_built():
    def fail():
        raise BackendError("no")

    with pytest.raises(BackendError):
        cached("key", {}, fail)
    make = Maker()
    cached("key", {}, make)
    assert make.times == 1


def test_the_key_depends_on_every_part_and_not_on_their_order():
    content = {"op": "a", "tiling": {"rows": 64}, "arch": "sm_80"}
    assert key_of(content) == key_of(dict(reversed(content.items())))
    changed = [{**content, "op": "b"}, {**content, "tiling": {"rows": 32}}, {**content, "arch": "sm_90a"}]
    assert len({key_of(each) for each in [content, *changed]}) == 4


def test_the_folder_is_the_users_cache_unless_told_otherwise(monkeypatch, tmp_path):
    monkeypatch.delenv("REGRAFT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "regraft" / "kernels"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache_folder() == tmp_path / "home" / ".cache" / "regraft" / "kernels"
