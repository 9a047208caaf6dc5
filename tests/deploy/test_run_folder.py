"""The run folder: the configuration that it writes, whom it lets in, what it leaves behind."""

import os
import re
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy import run_folder
from deploy.run_folder import Refused, RunFolder, allowed_urls, effective, escape

REPOSITORY = Path(__file__).parents[2]


# --- the effective configuration ---------------------------------------------------------------


def written_config(tmp_path: Path) -> tuple[str, dict[str, str], RunFolder]:
    run = RunFolder(tmp_path / "run")
    archive = tmp_path / "store" / "metastable.mar"
    run.write_config(REPOSITORY / "config.properties", archive, run.scratch / "inference.sock", 18082, 70_000)
    text = run.config.read_text()
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return text, dict(line.split("=", 1) for line in lines), run


def test_the_configuration_is_absolute_and_on_loopback(tmp_path: Path) -> None:
    text, config, run = written_config(tmp_path)
    run.close()
    assert config["inference_address"] == f"unix:{run.scratch}/inference.sock"
    assert config["metrics_address"] == "http://127.0.0.1:18082"
    assert config["management_address"].startswith("unix:/")
    assert config["disable_token_authorization"] == "false"
    assert config["max_request_size"] == "70000"
    assert config["model_store"] == str(tmp_path / "store")
    assert config["load_models"] == "metastable=metastable.mar"
    addresses = [value for key, value in config.items() if key.endswith("_address")]
    assert len(addresses) == 5
    assert all("127.0.0.1" in value or value.startswith("unix:/") for value in addresses)
    assert "0.0.0.0" not in text


def test_the_template_is_safe() -> None:
    text = (REPOSITORY / "config.properties").read_text()
    for line in (
        "enable_model_api=false",
        "enable_envvars_config=false",
        "install_py_dep_per_model=false",
        "job_queue_size=64",
        "grpc_inference_address=127.0.0.1",
        "grpc_management_address=127.0.0.1",
    ):
        assert line in text.splitlines()


def test_a_template_without_a_line_is_refused() -> None:
    with pytest.raises(Refused, match="model_store"):
        effective("# model_store=commented out\n", {"model_store": "/srv"})


def test_comments_are_kept_and_only_the_key_itself_is_replaced() -> None:
    text = "# port=1\nport=1\nport_x=1\n"
    assert effective(text, {"port": "2"}) == "# port=1\nport=2\nport_x=1\n"


@given(value=st.text(st.characters(exclude_categories=["Cs"])))
def test_escaped_values_are_ascii_and_can_be_read_back(value: str) -> None:
    escaped = escape(value)
    assert escaped.isascii()
    assert "\n" not in escaped
    units = re.sub(r"\\(\\|u(.{4}))", lambda m: chr(int(m[2], 16)) if m[2] else "\\", escaped)
    assert units.encode("utf-16-be", "surrogatepass").decode("utf-16-be") == value


def test_allowed_urls_hold_no_operator_and_no_comma() -> None:
    store, names = allowed_urls(Path("/srv/a,b.c+(ü)/store")).removeprefix("file://").split("/store/")
    assert store == r"/srv/a\x{2c}b\x{2e}c\x{2b}\x{28}\x{fc}\x{29}"
    assert re.fullmatch(names, "metastable.mar")
    for outside in ("../x.mar", "a/b.mar", "..%2fx.mar", ""):
        assert not re.fullmatch(names, outside)


# --- the run folder ----------------------------------------------------------------------------


def test_a_run_folder_is_private_and_cleaned_up(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    for folder in (run.root, run.logs, run.metrics, run.scratch):
        assert folder.stat().st_mode & 0o077 == 0
    run.close()
    assert not run.scratch.exists()
    assert not run.metrics.exists()
    assert run.logs.exists()


def test_old_counters_do_not_come_back(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    (run.metrics / "counter_1.db").touch()
    run._lock.close()  # as if killed: nothing was cleaned up
    again = RunFolder(tmp_path / "run")
    assert list(again.metrics.iterdir()) == []
    again.close()


def test_a_long_path_gets_a_short_folder_for_its_sockets(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / ("long" * 25))
    assert len(f"{run.scratch}/management.sock") <= 100
    assert run.scratch.stat().st_mode & 0o077 == 0
    run.close()
    assert not run.scratch.exists()


def test_one_that_was_killed_leaves_its_short_folder_to_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(run_folder, "SOCKET_PATH_LIMIT", len(os.fsencode(tmp_path)) + 60)
    place = tmp_path / ("long" * 25)
    run = RunFolder(place)
    (run.scratch / "archive").touch()
    run._lock.close()
    again = RunFolder(place)
    assert (again.scratch, list(again.scratch.iterdir())) == (run.scratch, [])
    assert again.scratch.parent == tmp_path
    again.close()
    other = tmp_path / "elsewhere"
    other.mkdir()
    run.scratch.symlink_to(other)  # nobody chooses for us where sockets lie
    third = RunFolder(place)
    assert not third.scratch.is_symlink()
    assert third.scratch.stat().st_mode & 0o077 == 0
    third.close()
    assert list(other.iterdir()) == []


def test_a_run_folder_in_use_is_refused(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    with pytest.raises(Refused, match="a server runs from"):
        RunFolder(tmp_path / "run")
    run.close()
    RunFolder(tmp_path / "run").close()


def test_a_folder_that_others_may_write_is_refused(tmp_path: Path) -> None:
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    with pytest.raises(Refused, match="changed by other users"):
        RunFolder(tmp_path / "open")


def test_a_folder_of_something_else_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "diary.txt").write_text("mine")
    with pytest.raises(Refused, match="holds files of something else"):
        RunFolder(tmp_path)
    assert (tmp_path / "logs" / "diary.txt").read_text() == "mine"
