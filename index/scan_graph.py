"""The one ONNX graph that is written here and not by an exporter: a table of 8-bit integers times a few queries.

Written as bytes by hand, because the base installation has ONNX Runtime but not the `onnx` package. The format is
protocol buffers, of which little is needed; the field numbers are those of
https://github.com/onnx/onnx/blob/main/onnx/onnx.proto.
"""

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

_UINT8, _INT8, _INT32 = 2, 3, 6
_IR_VERSION, _OPSET = 8, 18


_Piece = bytes | memoryview
"""Pieces are joined once, at the end: the table may be all the memory that there is for it."""


def integer_product(codes_DN: NDArray[np.int8], *, zero_point: int) -> bytes:
    """Return a graph with input `queries` `[n, D]` uint8 and output `products` `[n, N]` int32.

    It computes (queries - zero_point) @ codes, in integers.
    """
    dim, num_items = codes_DN.shape
    node = [_text(1, name) for name in ("queries", "codes", "zero_point")]
    node += [_text(2, "products"), _text(4, "MatMulInteger")]
    codes = np.ascontiguousarray(codes_DN).data.cast("B")
    graph = [
        *_field(1, node),
        _text(2, "scan"),
        *_field(5, _tensor("codes", _INT8, (dim, num_items), codes)),
        *_field(5, _tensor("zero_point", _UINT8, (), bytes([zero_point]))),
        *_field(11, _value("queries", _UINT8, dim)),
        *_field(12, _value("products", _INT32, num_items)),
    ]
    return b"".join([_number(1, _IR_VERSION), *_field(8, [_number(2, _OPSET)]), *_field(7, graph)])


def _tensor(name: str, dtype: int, shape: tuple[int, ...], content: _Piece) -> list[_Piece]:
    return [*[_number(1, size) for size in shape], _number(2, dtype), _text(8, name), *_field(9, [content])]


def _value(name: str, dtype: int, width: int) -> list[_Piece]:
    shape = [*_field(1, [_text(2, "n")]), *_field(1, [_number(1, width)])]
    return [_text(1, name), *_field(2, _field(1, [_number(1, dtype), *_field(2, shape)]))]


def _text(tag: int, value: str) -> bytes:
    return b"".join(_field(tag, [value.encode()]))


def _field(tag: int, content: Iterable[_Piece]) -> list[_Piece]:
    pieces = list(content)
    return [_varint(tag << 3 | 2) + _varint(sum(map(len, pieces))), *pieces]


def _number(tag: int, value: int) -> bytes:
    return _varint(tag << 3) + _varint(value)


def _varint(value: int) -> bytes:
    groups = []
    while value > 0x7F:
        groups.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*groups, value])
