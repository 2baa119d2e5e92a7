"""A run's folder: its status and log where the disk does not play along."""

import json
import logging

import pytest

from idp.errors import UserError
from idp.status import LOG, STATUS, run_folder


def status(folder):
    return json.loads((folder / STATUS).read_text())


def test_a_full_disk_is_said_in_one_line(tmp_path):
    class Rust(Exception):  # safetensors has an error of its own
        pass

    for error in (OSError(28, "No space left on device", "/data/record.json"), Rust("I/O: No space left on device")):
        said = r"stage track: No space left on device .* Free some space"
        with pytest.raises(UserError, match=said) as caught, run_folder(tmp_path / "run", "name") as shown:
            shown.stage("track")
            raise error
        assert status(tmp_path / "run")["error"] == str(caught.value)
        assert "Traceback" in (tmp_path / "run" / LOG).read_text()


def test_another_error_is_not_blamed_on_the_disk(tmp_path):
    said = "stage start: FileNotFoundError: .*; the traceback is in"
    with pytest.raises(UserError, match=said), run_folder(tmp_path, "name"):
        raise FileNotFoundError(2, "No such file or directory", "weights.json")


def test_a_log_that_cannot_be_written_costs_nothing(tmp_path, capsys):
    with run_folder(tmp_path, "name"):
        (handler,) = [each for each in logging.getLogger().handlers if getattr(each, "baseFilename", "").endswith(LOG)]
        handler.stream.close()
        handler.stream = open("/dev/full", "w")  # noqa: SIM115
        logging.getLogger("idp").warning("lost")
    assert status(tmp_path)["state"] == "done"
    assert capsys.readouterr().err == ""


def test_what_a_kill_cut_off_is_swept_away(tmp_path):
    (tmp_path / ".record.json.123.tmp").write_text("{")
    with run_folder(tmp_path, "name"):
        pass
    assert not list(tmp_path.glob("*.tmp")) and not list(tmp_path.glob(".*.tmp"))
