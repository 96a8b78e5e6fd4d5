"""What is set outside of a command line, and by whom."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from helpers.run import Result
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from csm_cli.errors import ConfigInvalid, UsageError
from csm_cli.script.schema import ScriptDefaults
from csm_cli.settings import GENERATION, SETTINGS, ResolvedSetting, read_configuration, validate
from csm_cli.settings.model import json_schema
from csm_cli.types import GenerationOptions

Csm = Callable[..., Result]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder in which csm is called."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_nothing_is_set_from_the_beginning() -> None:
    assert read_configuration().merged == {}


def test_the_environment_stands_over_the_project_over_the_user(
    here: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (home / "config.toml").write_text('temperature = 0.1\ntop_k = 1\nseed = 1\nmodel = "a/b"\n')
    (here / "csm.toml").write_text("temperature = 0.2\ntop_k = 0\n")
    monkeypatch.setenv("CSM_TEMPERATURE", "0.3")
    monkeypatch.setenv("CSM_SEED", "")
    user = str(home / "config.toml")
    found = read_configuration()
    assert found.merged == {
        "temperature": ResolvedSetting(0.3, "CSM_TEMPERATURE"),
        "top_k": ResolvedSetting(0, "csm.toml"),
        "seed": ResolvedSetting(1, user),
        "model": ResolvedSetting("a/b", user),
    }
    assert found.generation == GenerationOptions(temperature=0.3, top_k=0, seed=1)


def test_the_depth_decoder_follows_a_backbone_value_of_a_higher_file(here: Path, home: Path) -> None:
    (home / "config.toml").write_text("depth_temperature = 0.1\ndepth_top_k = 5\n")
    (here / "csm.toml").write_text("temperature = 0.2\n")
    assert read_configuration().generation == GenerationOptions(temperature=0.2, depth_top_k=5)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("temprature = 1", "'temprature'; did you mean temperature"),
        ("[model]\nname = 1", "model takes an id or a path"),
        ("x = 1", "known: temperature, top_k"),
        ("temperature = ", "Invalid value"),
        ("top-k = 3", "did you mean top_k"),
        ("a = 1\na = 2", "fix or remove it"),
    ],
)
def test_an_unusable_file_is_an_error_with_a_reason(here: Path, text: str, message: str) -> None:
    (here / "csm.toml").write_text(text)
    with pytest.raises(ConfigInvalid, match=message) as caught:
        read_configuration()
    assert caught.value.code == 2 and "csm.toml: " in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "temperature = -1",
        "temperature = nan",
        "temperature = true",
        "temperature = 100.5",
        "top_k = [1]",
        "model = true",
        'device = "gpu"',
        'dtype = "int4"',
        'top_k = "x"',
        "top_k = 1.5",
        "seed = -1",
        "max_duration = 0",
        'model = ""',
        'quantize = "int4"',
        "retries = 101",
        "takes = 0",
        "split = 5",
        'split = "on"',
        'verify = "maybe"',
        "offline = 2",
    ],
)
def test_an_impossible_value_names_its_place(here: Path, text: str) -> None:
    (here / "csm.toml").write_text(text)
    with pytest.raises(ConfigInvalid, match=f"csm.toml: {text.split()[0]} takes"):
        read_configuration()


def test_an_impossible_value_of_a_variable_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CSM_TAKES", "0")
    with pytest.raises(UsageError, match="CSM_TAKES takes a whole number from 1"):
        read_configuration()


@given(name=st.sampled_from(sorted(SETTINGS)), value=st.one_of(st.text(), st.integers(), st.floats(), st.booleans()))
def test_a_flag_a_file_and_a_script_accept_the_same_values(name: str, value: object) -> None:
    def accepts(check: Callable[[], object]) -> bool:
        try:
            check()
        except (UsageError, ValidationError):
            return False
        return True

    in_file = accepts(lambda: validate({name: value}, str))
    if name in GENERATION:
        assert accepts(lambda: ScriptDefaults.model_validate({name: value})) == in_file
    if not isinstance(value, bool | float) and SETTINGS[name].type is not str:
        assert accepts(lambda: validate({name: str(value)}, str)) == in_file


def test_a_file_that_is_a_folder_or_no_text_is_refused(here: Path) -> None:
    (here / "csm.toml").mkdir()
    with pytest.raises(ConfigInvalid, match="Is a directory"):
        read_configuration()
    (here / "csm.toml").rmdir()
    (here / "csm.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigInvalid):
        read_configuration()


def test_the_home_of_an_unknown_user_is_refused(csm: Csm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CSM_HOME", "~nobody-of-that-name")
    result = csm("voices", "list")
    assert result.code == 2 and "no such user" in result.err and len(result.err.splitlines()) == 1


def test_the_schema_knows_every_key(csm: Csm) -> None:
    schema = csm("config", "schema").json
    assert schema == json_schema() and set(schema["properties"]) == set(SETTINGS)
    assert not schema["additionalProperties"] and all(each["description"] for each in schema["properties"].values())
    assert TypeAdapter(dict[str, object]).validate_python(schema)


def test_a_flag_counts_over_a_file(
    csm: Csm, here: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CSM_MODEL", str(tiny_checkpoint))
    (here / "csm.toml").write_text("max_duration = 0.4\nretries = 0\n")
    metadata = csm("say", "Hi", "--json", "-o", "a.wav").json
    assert metadata["model"] == str(tiny_checkpoint) and metadata["duration_s"] == 0.4
    assert csm("say", "Hi", "--json", "--max-duration", "0.16", "-o", "a.wav").json["duration_s"] == 0.16


def test_a_flag_overrides_a_turn_which_overrides_the_script_which_overrides_a_file(
    csm: Csm, here: Path, tiny_checkpoint: Path
) -> None:
    (here / "csm.toml").write_text("max_duration = 3\nseed = 5\n")
    (here / "a.yaml").write_text(
        "defaults: {max_duration: 0.4}\n"
        "turns:\n  - {speaker: 0, text: Hi, max_duration: 0.16, seed: 9}\n  - {speaker: 0, text: Ho}\n"
    )
    run = ("converse", "a.yaml", "--json", "-o", "a.wav", "--model", tiny_checkpoint)

    def turn_fields(name: str, *flags: str) -> list[int]:
        return [turn[name] for turn in csm(*run, *flags).json["turns"]]

    assert turn_fields("frames") == [2, 5] and turn_fields("seed") == [9, 6]
    assert turn_fields("frames", "--max-duration", "0.8") == [10, 10]
    assert turn_fields("seed", "--seed", "0") == [0, 1]


def test_show_prints_the_source_of_every_value(
    csm: Csm, here: Path, home: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (home / "config.toml").write_text(f'model = "{tiny_checkpoint}"\nseed = 3\n')
    (here / "csm.toml").write_text("depth_top_k = 7\nsplit = 60\n")
    (here / "a.yaml").write_text("defaults: {seed: 9}\nturns: [{0: Hi}]\n")
    monkeypatch.setenv("CSM_RETRIES", "4")
    shown = csm("config", "show", "--json", "--device", "cpu", "--top-k", "2", "--script", "a.yaml").json
    assert {name: (each["value"], each["source"]) for name, each in shown.items()} == {
        "temperature": (0.0, str(tiny_checkpoint)),
        "top_k": (2, "flag"),
        "depth_temperature": (0.0, str(tiny_checkpoint)),
        "depth_top_k": ("as top_k", "flag"),
        "seed": (9, "a.yaml: defaults"),
        "max_duration": (None, "built in"),
        "model": (str(tiny_checkpoint), str(home / "config.toml")),
        "adapter": (None, "built in"),
        "revision": (None, "built in"),
        "device": ("cpu", "flag"),
        "dtype": ("auto", "built in"),
        "quantize": ("none", "built in"),
        "compile": (False, "built in"),
        "language": ("en", "built in"),
        "normalize": (False, "built in"),
        "retries": (4, "CSM_RETRIES"),
        "takes": (1, "built in"),
        "split": (60, "csm.toml"),
        "verify": (False, "built in"),
        "verify_model": ("base.en", "built in"),
        "offline": (False, "built in"),
    }


def test_show_of_a_model_that_was_never_fetched_does_not_fetch_it(csm: Csm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", "nowhere")
    shown = csm("config", "show", "--json", "--model", "some/model").json
    assert shown["temperature"] == {"value": "?", "source": "some/model (not downloaded yet)"}


def test_path_prints_the_files_that_are_read(csm: Csm, here: Path, home: Path) -> None:
    (here / "csm.toml").write_text("")
    assert csm("config", "path").out.splitlines() == [str(here / "csm.toml"), f"{home / 'config.toml'}  (none)"]


def test_a_broken_file_does_not_keep_from_asking_where_it_is(csm: Csm, here: Path) -> None:
    (here / "csm.toml").write_text("x = 1")
    assert csm("config", "path").code == 0 and csm("--help").code == 0
    result = csm("say", "Hi", "-o", "a.wav")
    assert result.code == 2 and "'x'" in result.err
