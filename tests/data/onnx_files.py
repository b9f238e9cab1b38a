"""The smallest networks there are, written byte by byte as ONNX wants them."""


def write_identity(path, *, channels=3, side=None):
    """A network that gives back what it is given; side None stands for any."""
    dims = [_number(1, 1), _number(1, channels)] + [
        _text(2, "side") if side is None else _number(1, side) for _ in range(2)
    ]
    shape = _nested(2, b"".join(_nested(1, dim) for dim in dims))
    tensor = _nested(2, _nested(1, _number(1, 1) + shape))  # Floats.
    node = _text(1, "x") + _text(2, "y") + _text(4, "Identity")
    graph = _nested(1, node) + _text(2, "graph")
    graph += _nested(11, _text(1, "x") + tensor) + _nested(12, _text(1, "y") + tensor)
    opset = _nested(8, _text(1, "") + _number(2, 13))
    path.write_bytes(_number(1, 8) + opset + _nested(7, graph))


def _varint(value):
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def _number(field, value):
    return _varint(field << 3) + _varint(value)


def _nested(field, content):
    return _varint(field << 3 | 2) + _varint(len(content)) + content


def _text(field, value):
    return _nested(field, value.encode())
