"""Pickles written instruction by instruction, which ask for code, for memory or for endless work."""

import io
import struct
import zipfile

# --- pickles, written by hand ---

MARK, TUPLE, REDUCE, STOP = b"(", b"t", b"R", b"."


def text(value: str) -> bytes:
    data = value.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def number(value: int) -> bytes:
    data = value.to_bytes((value.bit_length() + 8) // 8, "little", signed=True)
    return b"\x8a" + bytes([len(data)]) + data


def name(module: str, attribute: str) -> bytes:
    return f"c{module}\n{attribute}\n".encode()


def many(*items: bytes) -> bytes:
    return MARK + b"".join(items) + TUPLE


def call(function: bytes, *arguments: bytes) -> bytes:
    return function + many(*arguments) + REDUCE


def mapping(**items: bytes) -> bytes:
    return b"}" + MARK + b"".join(text(key) + value for key, value in items.items()) + b"u"


def storage(numel: bytes = number(4), kind: str = "FloatStorage", key: str = "0") -> bytes:
    return many(text("storage"), name("torch", kind), text(key), text("cpu"), numel) + b"Q"


def tensor(size: bytes, stride: bytes, offset: bytes = number(0), stored: bytes = storage()) -> bytes:
    hooks = name("collections", "OrderedDict") + b")" + REDUCE
    return call(name("torch._utils", "_rebuild_tensor_v2"), stored, offset, size, stride, b"\x89", hooks)


def archive(pickle: bytes, records: dict[str, bytes] | None = None, method: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as file:
        file.writestr("archive/data.pkl", b"\x80\x02" + pickle + STOP)
        for key, data in (records or {"archive/data/0": bytes(16)}).items():
            file.writestr(key, data)
    return buffer.getvalue()


def with_weight(weight: bytes) -> bytes:
    return archive(mapping(model=mapping(mask_emb=weight), cfg=mapping(model=b"}", task=b"}")))


def with_config(value: bytes, setting: str = "conv_feature_layers") -> bytes:
    weight = tensor(many(number(4)), many(number(1)))
    return archive(mapping(model=mapping(mask_emb=weight), cfg=mapping(model=mapping(**{setting: value}), task=b"}")))


def tree(levels: int, opening: bytes, closing: bytes) -> bytes:
    """A tuple of nested pairs of one and the same, level by level: 2 ** levels leaves for whoever walks it."""
    return MARK + b"K\x01q\x01" + (opening + b"h\x01h\x01" + closing + b"q\x01") * levels + TUPLE


def shared(value: bytes, times: int) -> bytes:
    return b"]" + MARK + value + b"q\x02" + b"h\x02" * times + b"e"


def pickles() -> dict[str, bytes]:
    plus_one = number(1)
    rebuild = name("torch._utils", "_rebuild_tensor_v2") + b"q\x01"
    empty = many(storage(), number(0), many(number(0)), many(plus_one), b"\x89", b"}") + b"q\x02"
    hang = {
        "tuple as a key": archive(b"}" + tree(26, MARK, TUPLE) + b"K\x01s"),
        "tuple in a config": with_config(tree(26, MARK, TUPLE)),
        "list in a config": with_config(tree(26, b"](", b"e"), "arch"),
        "tuple as a size": with_weight(tensor(tree(26, MARK, TUPLE), many(plus_one))),
        "tuple as an entry": archive(mapping(model=tree(26, MARK, TUPLE), args=mapping(arch=b"K\x01"))),
        "tuple as a storage": with_weight(tree(26, MARK, TUPLE) + b"Q"),
        "colliding keys": archive(b"}" + MARK + b"".join(number(i * (2**61 - 1)) + b"N" for i in range(20_000)) + b"u"),
        "a list in itself": with_config(b"]q\x05h\x05a"),
        "a long size many times": archive(
            many(*[b"K\x01"] * 50_000) + b"q\x01" + b"".join(tensor(b"h\x01", b"h\x01") for _ in range(3_000))
        ),
    }
    nested = "[" * 7 + "1" + "]*64" * 6 + "]"
    large = {
        "nested lists": with_config(text(nested)),
        "multiplied layers": with_config(text("[(1,1,1)]*1000000000")),
        "a tower": with_config(text("[1]*9**9**9**9")),
        "bytearray": archive(call(name("builtins", "bytearray"), number(3_000_000_000))),
        "bytearray opcode": archive(b"\x96" + (2**40).to_bytes(8, "little")),
        "punycode": archive(
            call(name("_codecs", "encode"), text("".join(map(chr, range(0x4E00, 0xA000)))), text("punycode"))
        ),
        "a long text many times": with_config(shared(text("x" * 1_000_000), 50_000)),
        "a long text": with_config(text("x" * 1_000_000)),
        "a long name": archive(mapping(model=mapping(**{"x" * 1_000_000: tensor(many(), many())}), cfg=b"}")),
        "long entries": archive(mapping(**{"x" * 1_000_000: b"N", "y" * 1_000_000: b"N"})),
        "a far memo": archive(b"Nr\xff\xff\xff\xff"),
        "a long number": archive(b"\x8b" + (10**6).to_bytes(4, "little") + b"\1" * 10**6),
        "a decimal number": archive(b"L" + b"9" * 300_000 + b"L\n"),
        "deep": archive(b"(" * 200_000),
        "deep lists": with_config(b"](" * 100_000 + b"e" * 100_000),
        "many instructions": archive(b"N" * 1_100_000),
        "many dictionaries": archive(b"](" + b"}" * 1_100_000 + b"e"),
        "empty tensors": archive(
            mapping(
                model=b"}"
                + MARK
                + b"".join(text(str(i)) + tensor(many(number(0)), many(plus_one)) for i in range(25_000))
                + b"u",
                cfg=b"}",
            )
        ),
        "300,000 empty tensors": archive(b"](" + rebuild + empty + b"h\x01h\x02R" * 300_000 + b"e"),
        "many weights": archive(
            mapping(
                model=b"}"
                + MARK
                + b"".join(
                    text(f"encoder.layers.{i}.fc1.weight") + tensor(many(number(0)), many(plus_one))
                    for i in range(9_000)
                )
                + b"u",
                cfg=mapping(model=mapping(encoder_layers=number(9_000)), task=b"}"),
            )
        ),
    }
    sizes = {
        "stride 0": with_weight(tensor(many(number(60_000), number(60_000)), many(number(0), number(0)))),
        "beyond the storage": with_weight(tensor(many(number(5)), many(plus_one))),
        "offset": with_weight(tensor(many(number(4)), many(plus_one), plus_one)),
        "huge stride": with_weight(tensor(many(number(2)), many(number(2**62)))),
        "huge size": with_weight(tensor(many(number(2**200)), many(plus_one))),
        "negative size": with_weight(tensor(many(number(-4)), many(plus_one))),
        "negative stride": with_weight(tensor(many(number(4)), many(number(-1)), number(3))),
        "negative offset": with_weight(tensor(many(number(4)), many(plus_one), number(-1))),
        "text as a size": with_weight(tensor(text("four"), many(plus_one))),
        "text in a size": with_weight(tensor(many(text("4")), many(plus_one))),
        "fraction as a size": with_weight(tensor(many(b"G" + struct.pack(">d", 4.0)), many(plus_one))),
        "true as a size": with_weight(tensor(many(b"\x88"), many(plus_one))),
        "strides missing": with_weight(tensor(many(number(2), number(2)), many(plus_one))),
        "65 dimensions": with_weight(tensor(many(*[plus_one] * 65), many(*[plus_one] * 65))),
        "negative storage": with_weight(tensor(many(number(4)), many(plus_one), stored=storage(number(-4)))),
        "huge storage": with_weight(tensor(many(number(4)), many(plus_one), stored=storage(number(2**62)))),
        "storage of text": with_weight(tensor(many(number(4)), many(plus_one), stored=storage(text("4")))),
        "no storage": with_weight(tensor(many(number(4)), many(plus_one), stored=b"N")),
        "strange storage": with_weight(tensor(many(number(4)), many(plus_one), stored=storage(kind="load"))),
        "another key": with_weight(tensor(many(number(4)), many(plus_one), stored=storage(key="../data.pkl"))),
        "one storage, two sizes": archive(
            mapping(
                model=mapping(
                    mask_emb=tensor(many(number(4)), many(plus_one)),
                    other=tensor(many(number(8)), many(plus_one), stored=storage(number(8))),
                ),
                cfg=mapping(model=b"}", task=b"}"),
            )
        ),
    }
    run = {
        "os.system": archive(call(name("posix", "system"), text("false"))),
        "eval": archive(call(name("__builtin__", "eval"), text("1 + 1"))),
        "hooks": with_weight(
            call(
                name("torch._tensor", "_rebuild_from_type_v2"),
                name("torch._utils", "_rebuild_tensor_v2"),
                name("torch", "Tensor"),
                many(),
                mapping(_backward_hooks=b"}"),
            )
        ),
        "build": archive(name("argparse", "Namespace") + mapping(__class__=b"N") + b"b"),
        "stack global": archive(text("posix") + text("system") + b"\x93"),
        "extension": archive(b"\x82\x01"),
        "instance": archive(b"(iposix\nsystem\n"),
        "by name": archive(b"Pposix\n"),
    }
    return {**hang, **large, **sizes, **run}
