"""Hand-made files that attack the checkpoint reader: small files that ask for code, memory or endless work.

Each of them has to be refused in one sentence.
"""

import collections
import io
import json
import pathlib
import pickletools
import re
import struct
import zipfile

import numpy as np
import torch
from hostile_pickles import STOP, archive, call, name, pickles, text, tree
from paths import REF_TINY

from s3prl_ofa.checkpoint import convert
from s3prl_ofa.model import ModelConfig, OFAWav2Vec2

Files = dict[str, bytes]


def records_of(data: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(data)) as file:
        return {entry: file.read(entry) for entry in file.namelist()}


def rebuilt(records: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    """An archive of these records, with checksums that are right."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as file:
        for key, data in records.items():
            file.writestr(key, data)
    return buffer.getvalue()


# --- archives ---


def archives(golden: bytes) -> Files:
    records = records_of(golden)
    first = "archive/data/0"
    twice = rebuilt(records | {"archive/data.pk_": records["archive/data.pkl"]})
    lying = bytearray(golden)
    entry = lying.rfind(b"PK\1\2", 0, lying.rfind(b"archive/data/0", 0, len(lying)))
    lying[entry + 20 : entry + 28] = struct.pack("<II", 2**31, 2**31)
    moved = bytearray(golden)
    moved[entry + 42 : entry + 46] = struct.pack("<I", 0)
    directory = bytearray(golden)
    end = directory.rfind(b"PK\6\6")
    directory[end + 40 : end + 48] = struct.pack("<Q", 2**31)
    pickle = records["archive/data.pkl"]
    bomb = records | {first: bytes(10**7)}
    return {
        "compressed": rebuilt(records, zipfile.ZIP_DEFLATED),
        "zip bomb": rebuilt(bomb, zipfile.ZIP_DEFLATED),
        "size in the list": bytes(lying),
        "place in the list": bytes(moved),
        "size of the list": bytes(directory),
        "80,000 records": rebuilt(records | {f"archive/{i}": b"" for i in range(80_000)}),
        "no record": rebuilt({key: data for key, data in records.items() if key != first}),
        "no pickle": rebuilt({key: data for key, data in records.items() if not key.endswith(".pkl")}),
        "a record twice": twice.replace(b"archive/data.pk_", b"archive/data.pkl"),
        "two pickles": rebuilt(records | {"other/data.pkl": records["archive/data.pkl"]}),
        "big-endian": rebuilt(records | {"archive/byteorder": b"big"}),
        "longer record": rebuilt(records | {first: records[first] + bytes(4)}),
        "an instruction that torch does not write": rebuilt(
            records | {"archive/data.pkl": pickle[:2] + b"N0" + pickle[2:]}
        ),
        "program": rebuilt(records | {"archive/constants.pkl": b""}),
        "huge pickle": rebuilt(records | {"archive/data.pkl": b"N" * (2**25 + 1)}),
        "only a list": golden[golden.rfind(b"PK\1\2") :],
    }


# --- states that torch.save writes ---


def saved(state: object, zipped: bool = True) -> bytes:
    buffer = io.BytesIO()
    torch.save(state, buffer, _use_new_zipfile_serialization=zipped)
    return buffer.getvalue()


def states() -> Files:
    whole = torch.load(REF_TINY, weights_only=True)
    cfg, weights = whole["cfg"], whole["model"]
    target = "encoder.layers.0.fc1.weight"

    def changed(weight: object) -> dict:
        return {"cfg": cfg, "model": {**weights, target: weight}}

    def configured(**values: object) -> dict:
        return {"cfg": {**cfg, "model": {**cfg["model"], **values}}, "model": weights}

    base, layer = torch.zeros(2**22), "encoder.layers.0."  # 16 MB, of which a hundred layers make 3 GB
    wide_layer = {key.removeprefix(layer): weight for key, weight in weights.items() if key.startswith(layer)}
    wide_layer |= {"fc1.weight": base.view(-1, 32), "fc1.bias": base[: 2**17], "fc2.weight": base.view(32, -1)}
    tied = {key: weight for key, weight in weights.items() if not key.startswith("encoder.layers.")}
    tied |= {f"encoder.layers.{index}.{key}": weight for index in range(100) for key, weight in wide_layer.items()}
    attributes = torch.nn.Parameter(weights[target].clone())
    attributes.extra = [1]
    found = {
        "float8": changed(weights[target].to(torch.float8_e4m3fn)),
        "complex": changed(weights[target].to(torch.complex64)),
        "integers": changed(weights[target].to(torch.int64)),
        "bool": changed(weights[target].bool()),
        "uint16": changed(weights[target].abs().to(torch.uint16)),
        "sparse": changed(weights[target].to_sparse()),
        "csr": changed(weights[target].to_sparse_csr()),
        "quantized": changed(torch.quantize_per_tensor(weights[target], 0.1, 0, torch.qint8)),
        "meta": changed(weights[target].to("meta")),
        "negated": changed(torch._neg_view(weights[target])),
        "attributes": changed(attributes),
        "nested": changed([weights[target]]),
        "numpy": changed(np.zeros(3)),
        "expanded": changed(torch.zeros(1).expand(64, 32)),
        "1e300": changed(weights[target].double() * 1e300),
        "nan": changed(weights[target] * torch.nan),
        "tied": configured(encoder_layers=100, encoder_ffn_embed_dim=2**17) | {"model": tied},
        "huge layers": configured(encoder_layers=10**9),
        "huge width": configured(encoder_embed_dim=2**20),
        "huge feed-forward": configured(encoder_ffn_embed_dim=2**40),
        "huge number": configured(encoder_layers=2**2000),
        "huge kernel": configured(conv_pos=2**40),
        "list for a number": configured(encoder_layers=[1] * 10_000),
        "no heads": configured(encoder_attention_heads=0),
    }
    wide = {  # small weights of a model whose others would need terabytes
        "feature_extractor.conv_layers.0.0.weight": torch.zeros(100_000, 1, 1),
        **{f"layer_norm.{part}": torch.zeros(100_000) for part in ("weight", "bias")},
        "encoder.layers.0.fc1.weight": torch.zeros(1, 100_000),
        "encoder.pos_conv.0.weight_v": torch.zeros(100_000, 1, 1),
        "encoder.pos_conv.0.bias": torch.zeros(100_000),
    }
    small = {"conv_feature_layers": "[(100000, 1, 1)]", "encoder_embed_dim": 100_000, "encoder_ffn_embed_dim": 1}
    small |= {"encoder_layers": 1, "conv_pos": 1, "conv_pos_groups": 100_000, "subsample": "cif"}
    found["wide"] = {"cfg": {"model": {**cfg["model"], **small}, "task": {}}, "model": wide}
    return {key: saved(state) for key, state in found.items()}


def pickle_ends(data: bytes) -> list[int]:
    """Where each of the five pickles of a legacy file ends."""
    file, ends = io.BytesIO(data), []
    for _ in range(5):
        collections.deque(pickletools.genops(file), maxlen=0)
        ends.append(file.tell())
    return ends


def legacy() -> Files:
    whole = torch.load(REF_TINY, weights_only=True)
    data = saved({"cfg": whole["cfg"], "model": whole["model"]}, zipped=False)
    *_, keys, end = pickle_ends(data)  # then come the storages, each after its size
    changed = data[:end] + (2**62).to_bytes(8, "little") + data[end + 8 :]
    return {
        "legacy: cut storage": data[:-4],
        "legacy: lying storage": changed,
        "legacy: more behind": data + bytes(100),
        "legacy: big-endian": re.sub(rb"(little_endianq.)\x88", lambda found: found[1] + b"\x89", data),
        "legacy: keys in a tree": data[:keys] + b"\x80\x02](" + tree(26, b"](", b"e") + b"e" + STOP,
        "plain pickle": b"\x80\x02]q\x00K\x01a.",
    }


# --- safetensors, Hugging Face ---


def header_of(data: bytes) -> tuple[dict, bytes]:
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def with_header(header: dict, payload: bytes) -> bytes:
    data = json.dumps(header).encode()
    return len(data).to_bytes(8, "little") + data + payload


def safetensors(folder: pathlib.Path) -> Files:
    header, payload = header_of(convert(REF_TINY, folder / "own.safetensors").read_bytes())
    metadata = header["__metadata__"]
    config = json.loads(metadata["config"])
    key = "encoder.layers.0.fc1.weight"

    def said(**values: object) -> bytes:
        return with_header(header | {"__metadata__": metadata | {"config": json.dumps(config | values)}}, payload)

    def told(**values: str) -> bytes:
        return with_header(header | {"__metadata__": metadata | values}, payload)

    return {
        "own: no end": told(config="[" * 10**6),
        "own: no end beside": told(model_cfg='{"a":' * 10**5),
        "own: large": told(config=json.dumps([0] * 10**6)),
        "own: many layers": said(conv_layers=[[1, 1, 1]] * 50_000),
        "own: huge layers": said(layers=10**9),
        "own: huge digits": told(config='{"layers": ' + "9" * 100_000 + "}"),
        "own: text for layers": said(conv_layers="x" * 10**6),
        "own: number for layers": said(conv_layers=5),
        "own: a list": told(config="[1, 2]"),
        "own: unknown keys": said(**{f"key{index}": index for index in range(5_000)}),
        "own: format": told(format="x" * 10**6),
        "own: float8": with_header(header | {key: header[key] | {"dtype": "F8_E4M3"}}, payload),
        "own: shape": with_header(header | {key: header[key] | {"shape": [2**40, 2**40]}}, payload),
        "own: offsets": with_header(header | {key: header[key] | {"data_offsets": [0, 2**60]}}, payload),
        "own: 40,000 empty tensors": with_header(
            header | {str(i): {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for i in range(40_000)}, payload
        ),
        "own: long name": with_header(
            header | {"x" * 10**5: {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}}, payload
        ),
        "own: huge header": (2**62).to_bytes(8, "little") + with_header(header, payload)[8:],
    }


def plain_folder(folder: pathlib.Path) -> Files:
    """The files of a small Hugging Face model."""
    torch.manual_seed(0)
    config = ModelConfig(
        conv_layers=((8, 20, 10), (8, 32, 32)),
        dim=12,
        ffn_dim=16,
        heads=2,
        layers=2,
        pos_conv_kernel=4,
        pos_conv_groups=2,
    )
    OFAWav2Vec2(config).save(folder / "plain.safetensors")
    made = convert(folder / "plain.safetensors", folder / "huggingface", force=True)
    return {path.name: path.read_bytes() for path in made.iterdir()}


def folders(plain: Files) -> dict[str, Files]:
    config, index = json.loads(plain["config.json"]), "model.safetensors.index.json"
    parts = {key: data for key, data in plain.items() if key != "model.safetensors"}

    def said(**values: object) -> Files:
        return {**plain, "config.json": json.dumps(config | values).encode()}

    def indexed(weight_map: object) -> Files:
        return {**parts, index: json.dumps({"weight_map": weight_map}).encode()}

    return {
        "hf: no end": {**plain, "config.json": b"[" * 10**6},
        "hf: large": {**plain, "config.json": b" " * 5_000_000 + plain["config.json"]},
        "hf: huge layers": said(num_hidden_layers=10**9),
        "hf: huge digits": {**plain, "config.json": b'{"hidden_size": ' + b"9" * 10**5 + b"}"},
        "hf: many layers": said(conv_dim=[1] * 10**5, conv_kernel=[1] * 10**5, conv_stride=[1] * 10**5),
        "hf: long text": said(hidden_act="x" * 10**6),
        "hf: lists": said(num_hidden_layers=[[1] * 1000] * 100),
        "hf: list for the type": said(model_type=["wav2vec2"]),
        "hf: outside": indexed({"a": "../model.safetensors"}),
        "hf: many parts": indexed({str(number): f"{number}.safetensors" for number in range(50_000)}),
        "hf: long part": indexed({"a": "x" * 10**6}),
        "hf: pickle": {**parts, "pytorch_model.bin": archive(call(name("posix", "system"), text("false")))},
        "hf: cut": {**plain, "model.safetensors": plain["model.safetensors"][:-4]},
        "hf: many weights": {
            **parts,
            "pytorch_model.bin": saved({f"wav2vec2.{index}": torch.zeros(0) for index in range(6_000)}),
        },
    }


def attacks(folder: pathlib.Path) -> dict[str, Files]:
    """Name of the attack -> the files, a single one under the name ``file``. ``folder``: for files made on the way."""
    single = {**pickles(), **archives(REF_TINY.read_bytes()), **states(), **legacy(), **safetensors(folder)}
    return {**{key: {"file": data} for key, data in single.items()}, **folders(plain_folder(folder))}
