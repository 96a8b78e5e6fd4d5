"""Every value a person can set: its type, bounds, help line and the words of its error, once.

Command-line options, `CSM_*` variables, csm.toml, scripts and generation_config.json are checked against this table.
Pydantic, which does the checking, is imported only then: `csm --help` needs no more than this file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from csm_cli.device import DEVICE_PATTERN, DTYPES
from csm_cli.types import DEFAULT_CHUNK_CHARS, GenerationOptions

Value = str | int | float | bool


@dataclass(frozen=True, eq=False)
class Setting:
    """One value; as metadata of an `Annotated` type it makes a field of an option class a setting.

    type: str, int, float or bool. expected: what an error says it takes. panel: of the long help (`--help-all`); None
    puts it into the short one too. above: exclusive minimum. pattern: of the whole text. keywords: words that stand for
    a number. user_only: it loads code or weights or uses the network, so that a project's csm.toml cannot set it.
    """

    name: str
    type: type
    help: str
    metavar: str = ""
    panel: str | None = None
    expected: str = ""
    minimum: float | None = None
    above: float | None = None
    maximum: float | None = None
    pattern: str = ""
    keywords: Mapping[str, float] = field(default_factory=dict)
    user_only: bool = False

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        from csm_cli.settings.model import value_type

        return handler.generate_schema(value_type(self))


def setting(name: str, **changes: Any) -> Setting:
    """The setting of this name; `changes` are a command's own `help` or `panel`."""
    return replace(SETTINGS[name], **changes)


_TEXT = r"(?s).*\S.*"
_TEMPERATURE: dict[str, Any] = {"expected": "a temperature from 0 to 100", "minimum": 0, "maximum": 100}
_TOP_K: dict[str, Any] = {"expected": "a whole number from 0 to 1000000", "minimum": 0, "maximum": 1_000_000}
_SWITCH: dict[str, Any] = {"expected": "true or false"}
_ALL = (
    Setting("temperature", float, "Sampling temperature; 0 = greedy.", "X", **_TEMPERATURE),
    Setting("top_k", int, "Sample from the N most likely codes; 0 = from all.", "N", "Generation", **_TOP_K),
    Setting(
        "depth_temperature",
        float,
        "Temperature of the depth decoder; follows temperature.",
        "X",
        "Generation",
        **_TEMPERATURE,
    ),
    Setting("depth_top_k", int, "top_k of the depth decoder; follows top_k.", "N", "Generation", **_TOP_K),
    Setting(
        "seed",
        int,
        "Random seed, to repeat a take; if unset, drawn and reported (in a batch: from the item).",
        "N",
        expected="a whole number from 0 to 2^63-1",
        minimum=0,
        maximum=2**63 - 1,
    ),
    Setting(
        "max_duration",
        float,
        "Longest duration of a turn; auto (default): from its text.",
        "auto|SEC",
        "Generation",
        expected="auto or seconds > 0, at most 3600",
        above=0,
        maximum=3600,
        keywords={"auto": 0.0},
    ),
    Setting(
        "model",
        str,
        "Hugging Face id, folder or weights file; the bundled voice if unset.",
        "ID|PATH",
        expected="an id or a path",
        pattern=_TEXT,
        user_only=True,
    ),
    Setting(
        "adapter",
        str,
        "LoRA adapter to merge into the model.",
        "ID|PATH",
        "Model",
        expected="an id or a path",
        pattern=_TEXT,
        user_only=True,
    ),
    Setting(
        "revision",
        str,
        "Commit, branch or tag of a Hugging Face id.",
        "REV",
        "Model",
        expected="a commit, branch or tag",
        pattern=_TEXT,
        user_only=True,
    ),
    Setting(
        "device",
        str,
        "auto (default), cpu, cuda, cuda:N or mps.",
        "NAME",
        expected="auto, cpu, cuda, cuda:N or mps",
        pattern=f"auto|{DEVICE_PATTERN}",
    ),
    Setting(
        "dtype",
        str,
        "auto (default), float32, bfloat16 or float16.",
        "NAME",
        "Model",
        expected=f"auto, {', '.join(DTYPES)}",
        pattern="|".join(("auto", *DTYPES)),
    ),
    Setting(
        "quantize",
        str,
        "int8: 8-bit weights, on a CPU or CUDA; for csm-1b.",
        "none|int8",
        "Model",
        expected="none or int8",
        pattern="none|int8",
    ),
    Setting(
        "compile",
        bool,
        "Use torch.compile: faster, after half a minute or more of compiling.",
        "",
        "Model",
        user_only=True,
        **_SWITCH,
    ),
    Setting(
        "retries",
        int,
        "After a bad take, try up to N more with the next seeds (default 2).",
        "N",
        "Generation",
        expected="a whole number from 0 to 100",
        minimum=0,
        maximum=100,
    ),
    Setting(
        "takes",
        int,
        "Make N takes of each turn, with the next seeds, and keep the best.",
        "N",
        "Generation",
        expected="a whole number from 1 to 100",
        minimum=1,
        maximum=100,
    ),
    Setting(
        "split",
        int,
        "Generate long texts in chunks of whole sentences, of about N characters.",
        "auto|off|N",
        "Generation",
        expected="auto, off or characters from 20 to 999999",
        minimum=20,
        maximum=999_999,
        keywords={"auto": DEFAULT_CHUNK_CHARS, "off": 0},
    ),
    Setting(
        "language",
        str,
        "Language whose rules split texts into sentences (default en).",
        "CODE",
        "Text",
        expected="the code of a language, such as en or de",
        pattern="[A-Za-z]{2,3}(-[A-Za-z0-9]{1,8})*",
    ),
    Setting(
        "normalize",
        bool,
        "Write out numbers, dates, money and abbreviations for the model; needs csm-cli[normalize].",
        "",
        "Text",
        **_SWITCH,
    ),
    Setting(
        "verify",
        bool,
        "Transcribe takes and retry where the words differ; needs csm-cli[verify].",
        "",
        "Generation",
        user_only=True,
        **_SWITCH,
    ),
    Setting(
        "verify_model",
        str,
        "faster-whisper model of --verify and --word-times: a size or a folder (default base.en).",
        "NAME",
        "Generation",
        expected="a size or a folder",
        pattern=_TEXT,
        user_only=True,
    ),
    Setting("offline", bool, "Use only models that are already on this machine.", "", "Model", **_SWITCH),
)
SETTINGS = {each.name: each for each in _ALL}
GENERATION = tuple(each.name for each in fields(GenerationOptions))
