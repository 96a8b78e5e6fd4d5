"""The pydantic model of all settings, made from their table."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidatorFunctionWrapHandler,
    WithJsonSchema,
    WrapValidator,
    create_model,
)
from pydantic_core import PydanticCustomError

from csm_cli.settings.fields import GENERATION, SETTINGS, Setting


def expecting(words: str, bools: bool = False) -> WrapValidator:
    """Turns every failure into one error, "expected `words`"; true and false are failures too unless `bools`."""

    def check(value: object, convert: ValidatorFunctionWrapHandler) -> object:
        try:
            if isinstance(value, bool) and not bools:
                raise ValueError(value)
            return convert(value)
        except ValueError:
            raise PydanticCustomError("expected", "expected {words}", {"words": words}) from None

    return WrapValidator(check)


def value_type(setting: Setting) -> Any:
    """The type of a setting's value, as pydantic checks it: text is converted, keywords become their numbers."""

    def keyword(value: object, convert: ValidatorFunctionWrapHandler) -> object:
        return setting.keywords[value] if isinstance(value, str) and value in setting.keywords else convert(value)

    words = expecting(setting.expected, bools=setting.type is bool)
    if setting.type is bool:
        return Annotated[bool, words]
    if setting.type is str:
        return Annotated[str, Field(pattern=f"^(?:{setting.pattern})$"), words]
    number: dict[str, Any] = {"type": "number" if setting.type is float else "integer"}
    bounds = {"minimum": setting.minimum, "exclusiveMinimum": setting.above, "maximum": setting.maximum}
    number |= {name: bound for name, bound in bounds.items() if bound is not None}
    form = {"anyOf": [{"enum": list(setting.keywords)}, number]} if setting.keywords else number
    return Annotated[
        setting.type,
        Field(ge=setting.minimum, gt=setting.above, le=setting.maximum),
        *([Field(allow_inf_nan=False)] if setting.type is float else []),
        WrapValidator(keyword),
        words,
        WithJsonSchema(form),
    ]


def _fields(names: tuple[str, ...]) -> Any:
    described = {name: Field(None, description=SETTINGS[name].help) for name in names}
    return {name: (Annotated[SETTINGS[name].type, SETTINGS[name]] | None, described[name]) for name in names}


if TYPE_CHECKING:  # the fields are made at run time
    GenerationFields = BaseModel
    SettingsModel = BaseModel
else:
    GenerationFields = create_model("GenerationFields", **_fields(GENERATION))
    SettingsModel = create_model("SettingsModel", __config__=ConfigDict(extra="forbid"), **_fields(tuple(SETTINGS)))


def json_schema() -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of csm.toml and config.toml, for editors."""
    properties = SettingsModel.model_json_schema()["properties"]
    for name, schema in properties.items():
        forms = [form for form in schema.pop("anyOf") if form != {"type": "null"}]
        properties[name] = {**(forms[0] if len(forms) == 1 else {"anyOf": forms}), "description": schema["description"]}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "csm.toml",
        "type": "object",
        "properties": properties,
        "additionalProperties": False,
    }
