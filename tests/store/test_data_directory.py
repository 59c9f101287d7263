"""Row F6: other users cannot read DATA_DIR, and planted links are not followed."""

import os
import stat

import pytest
from process import SAMPLE_SETTINGS, Gateway

from tornado_gateway.errors import GatewayError
from tornado_gateway.store.data_directory import secure


def mode_of(path):
    return stat.S_IMODE(path.lstat().st_mode)


@pytest.fixture
def umask():
    before = os.umask(0o022)
    yield
    os.umask(before)


def test_f6_all_files_are_private(tmp_path, umask):
    with Gateway(tmp_path / "data", SETTINGS_FILE=SAMPLE_SETTINGS, ADMIN_TOKEN="a-token-of-operators-0123") as gateway:
        assert gateway.post("/events/t", {"d": {"visId": "u", "event": {"name": "a"}}})[0] == 200
        files = list((tmp_path / "data").iterdir())
        assert len(files) > 3
        assert mode_of(tmp_path / "data") == 0o700
        assert {path.name: mode_of(path) for path in files} == {path.name: 0o600 for path in files}


def test_f6_an_existing_directory_is_tightened_with_a_line(tmp_path, umask):
    directory = tmp_path / "data"
    with Gateway(directory, SETTINGS_FILE=SAMPLE_SETTINGS) as gateway:
        gateway.terminate()
        directory.chmod(0o755)
        for path in directory.iterdir():
            path.chmod(0o644)
        gateway.start()
        files = list(directory.iterdir())
        assert mode_of(directory) == 0o700
        assert {path.name: mode_of(path) for path in files} == {path.name: 0o600 for path in files}
        assert f"{directory} had mode 0755" in gateway.log()


@pytest.mark.parametrize("name", ["state.db", "events-1.db", "events-1.lock", "dead.db-wal"])
def test_f6_planted_links_are_not_followed(tmp_path, name):
    target = tmp_path / "target"
    target.write_bytes(b"precious")
    directory = tmp_path / "data"
    directory.mkdir()
    (directory / name).symlink_to(target)
    with pytest.raises(GatewayError, match="symbolic link") as raised:
        secure(directory)
    assert str(directory / name) in str(raised.value)
    assert target.read_bytes() == b"precious"


def test_f6_a_directory_of_others_is_left_alone(tmp_path, caplog):
    """A mistaken DATA_DIR, such as /tmp or a home directory, must stay usable for its owner."""
    (tmp_path / "letters").mkdir()
    tmp_path.chmod(0o755)
    sticky = tmp_path / "sticky"
    sticky.mkdir()
    sticky.chmod(0o1777)
    for directory, mode in ((tmp_path, 0o755), (sticky, 0o1777)):
        secure(directory)
        assert mode_of(directory) == mode
        assert f"{directory} has mode {mode:04o}" in caplog.text
