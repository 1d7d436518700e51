"""What the tables of a dataset folder look like: columns and types."""

import pyarrow as pa

from index.dataset_problems import Problem

SPLITS = ("train", "valid", "test")

MAX_ID_LENGTH = 256
"""Longest user or item id in characters: ids travel in URLs and keys."""


def is_string(dtype: pa.DataType) -> bool:
    """Tell whether a column holds strings in one of Arrow's layouts."""
    return bool(pa.types.is_string(dtype) or pa.types.is_large_string(dtype) or pa.types.is_string_view(dtype))


def is_string_list(dtype: pa.DataType) -> bool:
    """Tell whether a column holds lists of strings; a list that is empty in every row has values of type null."""
    if not (pa.types.is_list(dtype) or pa.types.is_large_list(dtype)):
        return False
    return is_string(dtype.value_type) or bool(pa.types.is_null(dtype.value_type))


def is_attribute(dtype: pa.DataType) -> bool:
    """Tell whether a column can be an attribute: string, whole number, float or bool, which filters can compare."""
    numeric = pa.types.is_integer(dtype) or pa.types.is_floating(dtype) or pa.types.is_boolean(dtype)
    return is_string(dtype) or bool(numeric) or bool(pa.types.is_null(dtype))


def check_items_schema(schema: pa.Schema, *, file_name: str) -> list[Problem]:
    """Return what is wrong with the columns of an items table."""
    problems = _repeated(schema, file_name)
    problems += _required(schema, file_name, {"item_id": "string"})
    for field in schema:
        if field.name == "categories":
            if not is_string_list(field.type):
                problems.append(_wrong_type(file_name, field, "list of strings"))
        elif field.name in ("item_id", "title", "description", "image_url"):
            if not is_string(field.type) and not (field.name != "item_id" and pa.types.is_null(field.type)):
                problems.append(_wrong_type(file_name, field, "string"))
        elif not is_attribute(field.type):
            problems.append(_wrong_type(file_name, field, "string, whole number, float or bool, as any attribute"))
    return problems


def check_interactions_schema(schema: pa.Schema, *, file_name: str) -> list[Problem]:
    """Return what is wrong with the columns of an interactions table."""
    problems = _repeated(schema, file_name)
    problems += _required(schema, file_name, {"user_id": "string", "item_id": "string", "timestamp": "int64"})
    for field in schema:
        if field.name in ("user_id", "item_id", "event", "split"):
            if not is_string(field.type):
                problems.append(_wrong_type(file_name, field, "string"))
        elif field.name == "timestamp":
            if field.type != pa.int64():
                problems.append(_wrong_type(file_name, field, "int64, seconds since the epoch in UTC"))
        elif field.name in ("rating", "weight"):
            if field.type not in (pa.float32(), pa.float64()):
                problems.append(_wrong_type(file_name, field, "float32"))
        else:
            detail = "is no column of an interactions table and is ignored"
            problems.append(Problem(file_name, detail, column=field.name, severity="warning"))
    return problems


def normalised(table: pa.Table) -> pa.Table:
    """Return the table with every string as `string` and every list of strings as `list<string>`."""
    fields = []
    for field in table.schema:
        dtype = field.type
        if is_string(dtype):
            dtype = pa.string()
        elif is_string_list(dtype):
            dtype = pa.list_(pa.string())
        fields.append(pa.field(field.name, dtype))
    return table.cast(pa.schema(fields))


def _repeated(schema: pa.Schema, file_name: str) -> list[Problem]:
    names = schema.names
    return [
        Problem(file_name, "appears more than once", column=name)
        for name in dict.fromkeys(names)
        if names.count(name) > 1
    ]


def _required(schema: pa.Schema, file_name: str, columns: dict[str, str]) -> list[Problem]:
    return [
        Problem(file_name, f"column is missing ({dtype})", column=name)
        for name, dtype in columns.items()
        if name not in schema.names
    ]


def _wrong_type(file_name: str, field: pa.Field, expected: str) -> Problem:
    return Problem(file_name, f"type is {field.type}, expected {expected}", column=field.name)
