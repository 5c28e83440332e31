"""The API in words: schemas of the infer bodies for the documentation page. Requests are not validated with them."""

from collections.abc import Sequence
from typing import Any

import orjson
from pydantic import BaseModel, Field
from pydantic.json_schema import models_json_schema

from edgert.serving.codecs import HEADER_LENGTH
from edgert.serving.dataplane import OpenModel
from edgert.serving.tensors import DATATYPES

__all__ = ["INFER", "InferRequest", "InferResponse", "ModelMetadata", "Problem", "document"]

_REFERENCE = "#/components/schemas/{model}"
_Parameters = dict[str, Any]


class InputTensor(BaseModel):
    """An input: either `data`, or the parameter `binary_data_size` and raw bytes behind the JSON."""

    name: str
    datatype: str = Field(json_schema_extra={"enum": list(DATATYPES)})
    shape: list[int] = Field(description="The batch axis included.")
    data: list[Any] | None = Field(None, description="Flat in row-major order, or nested as the shape.")
    parameters: _Parameters = {}


class RequestedOutput(BaseModel):
    """An output to be answered; `binary_data` asks for raw bytes."""

    name: str
    parameters: _Parameters = {}


class InferRequest(BaseModel):
    """A request; without `outputs` all of them are answered."""

    inputs: list[InputTensor]
    outputs: list[RequestedOutput] | None = None
    id: str | None = Field(None, description="Given back in the answer.")
    parameters: _Parameters = Field({}, description="`binary_data_output`: answer with raw bytes.")


class OutputTensor(BaseModel):
    """An output."""

    name: str
    datatype: str
    shape: list[int]
    data: list[Any] | None = None
    parameters: _Parameters = {}


class InferResponse(BaseModel):
    """An answer."""

    model_name: str
    model_version: str
    id: str | None = None
    outputs: list[OutputTensor]


class TensorMetadata(BaseModel):
    """An input or output of a model; -1 where the size is free."""

    name: str
    datatype: str
    shape: list[int]


class ModelMetadata(BaseModel):
    """What a model takes and gives."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]


class Problem(BaseModel):
    """What went wrong, and what to do about it."""

    error: str
    hint: str


INFER: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {"schema": {"$ref": _REFERENCE.format(model="InferRequest")}},
            "application/octet-stream": {
                "schema": {"type": "string", "format": "binary"},
                "x-description": f"JSON, then the raw tensors; the header {HEADER_LENGTH} is the length of the JSON.",
            },
        },
    }
}
"""What FastAPI cannot know about the infer routes, because they read the raw body."""


def document(described: dict[str, Any], models: Sequence[OpenModel]) -> dict[str, Any]:
    """An OpenAPI document, completed by the schema of the infer body and one example per model that answers."""
    _, schemas = models_json_schema([(InferRequest, "validation")], ref_template=_REFERENCE)
    described.setdefault("components", {}).setdefault("schemas", {}).update(schemas["$defs"])
    examples = {opened.model: {"value": orjson.loads(opened.example)} for opened in models if opened.example}
    if not examples:
        return described
    for path, operations in described["paths"].items():
        if path.endswith("/infer"):
            operations["post"]["requestBody"]["content"]["application/json"]["examples"] = examples
        for operation in operations.values():
            for parameter in operation.get("parameters", ()):
                if parameter["name"] == "model":
                    parameter["example"] = next(iter(examples))
    return described
