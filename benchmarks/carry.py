"""Packs into one small archive what a GPU machine without a network lacks, for benchmarks/gpu.sh.

    python benchmarks/carry.py carried.tar.xz

The machine has Python with torch, torchaudio, transformers, pytest and the usual scientific packages. Compiled packages
come as wheels for its Python, others from this environment, in the versions that are installed here. S3PRL and fairseq
have tens of MiB, of which only what Python imports is packed.
"""

import argparse
import importlib.metadata
import pathlib
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile

COMPILED = ("bitarray", "cffi", "editdistance", "soundfile", "soxr")
FAIRSEQ = "fairseq-fixed"
OF_PRETRAINING = (FAIRSEQ, "antlr4-python3-runtime", "hydra-core", "omegaconf")
OF_S3PRL = ("s3prl", "librosa", "audioread", "decorator", "platformdirs", "pooch", "tensorboardX")
PURE = (*OF_PRETRAINING, *OF_S3PRL, "pycparser")
KEPT = (".json", ".msgpack", ".py", ".pyi", ".txt", ".yaml", "METADATA")
FAIRSEQ_COMPILED = "fairseq/data/"  # batching; the rest of its compiled code is for translation
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_27_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")


def pip_download(folder: pathlib.Path, python_version: str, names: tuple[str, ...]) -> list[pathlib.Path]:
    """Wheels of compiled packages."""
    versions = [f"{name}=={importlib.metadata.version(name)}" for name in names]
    platforms = [part for platform in PLATFORMS for part in ("--platform", platform)]
    options = ["-q", "--no-deps", "--only-binary=:all:", "--implementation", "cp", "--python-version", python_version]
    command = [sys.executable, "-m", "pip", "download", *options, *platforms, "-d", str(folder), *versions]
    subprocess.run(command, check=True)
    return sorted(folder.glob("*.whl"))


def copy_pure(site: pathlib.Path) -> None:
    """The Python files and data of packages that are installed here."""
    for name in PURE:
        for file in importlib.metadata.distribution(name).files:
            if file.name.endswith(KEPT) and ".." not in file.parts:
                target = site / file
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file.locate(), target)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=pathlib.Path, help="the archive, .tar.xz")
    parser.add_argument("--python-version", default="3.12", help="of the other machine")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        site, wheels = pathlib.Path(folder, "site"), pathlib.Path(folder, "wheels")
        copy_pure(site)
        for wheel in pip_download(wheels, args.python_version, COMPILED):
            zipfile.ZipFile(wheel).extractall(site)
        fairseq_wheels = wheels / "fairseq"
        if args.python_version == "{}.{}".format(*sys.version_info):
            compiled = importlib.metadata.distribution(FAIRSEQ).files
            for file in compiled:
                if str(file).startswith(FAIRSEQ_COMPILED) and file.suffix == ".so":
                    shutil.copyfile(file.locate(), site / file)
        else:
            (wheel,) = pip_download(fairseq_wheels, args.python_version, (FAIRSEQ,))
            with zipfile.ZipFile(wheel) as archive:
                names = [name for name in archive.namelist() if name.startswith(FAIRSEQ_COMPILED) and ".so" in name]
                archive.extractall(site, names)
        for library in (site / FAIRSEQ_COMPILED).glob("*.so"):
            subprocess.run(["strip", "--strip-all", str(library)], check=True)
        with tarfile.open(args.out, "w:xz", preset=9) as archive:
            archive.add(site, ".")
    print(f"{args.out}: {args.out.stat().st_size / 2**20:.1f} MiB")


if __name__ == "__main__":
    main()
