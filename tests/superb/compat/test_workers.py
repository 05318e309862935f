"""Data workers that are fresh interpreters, as on macOS and Windows: S3PRL's datasets work there too."""

import subprocess
import sys
import textwrap

import pytest

from s3prl_ofa.superb import registration

MODULES = ("s3prl.downstream.asr.dataset", "s3prl.downstream.ctc.corpus.libriphone")
MODULES += ("s3prl.downstream.voxceleb1.dataset",)


@pytest.mark.slow
def test_datasets_register_in_workers():
    """Unpickled in a fresh Python, a dataset of each task finds S3PRL with its shims, our corpora and our loader."""
    registration.register()
    code = f"""
    import importlib, sys
    from multiprocessing.reduction import ForkingPickler
    from s3prl_ofa.superb import registration
    for name in {MODULES!r}:
        module = importlib.import_module(name)
        classes = [value for value in vars(module).values() if getattr(value, "__module__", None) == name]
        found = next(each for each in classes if each.__name__.endswith("Dataset"))
        dataset = object.__new__(found)
        dataset.X, dataset.file_list, dataset.dataset = [["a"]] * 3, ["a"] * 3, ["a"] * 3
        sys.stdout.write(bytes(ForkingPickler.dumps((dataset, dataset.__len__))).hex() + "\\n")
    """
    pickles = python(code)
    assert len(pickles) == 3
    code = """
    import pickle, sys
    for line in sys.stdin:
        dataset, length = pickle.loads(bytes.fromhex(line))
        assert length.__self__ is dataset
        print(type(dataset).__name__, len(dataset), length())
    from s3prl.downstream.ctc import data
    from s3prl_ofa.superb.compat import shims
    assert data.torchaudio.load is shims.load_checked
    """
    names = ("SequenceDataset", "LibriPhoneDataset", "SpeakerClassifiDataset")
    assert python(code, "\n".join(pickles)) == [f"{name} 3 3" for name in names]


def python(code: str, given: str = "") -> list[str]:
    """The lines that code prints in a fresh Python."""
    command = [sys.executable, "-c", textwrap.dedent(code)]
    result = subprocess.run(command, input=given, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines()
