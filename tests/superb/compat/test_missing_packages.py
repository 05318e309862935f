"""Stand-ins for packages of which S3PRL's tasks use one function: they do what the packages do there."""

import sys
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
import torch
from torch.utils.data import WeightedRandomSampler

from s3prl_ofa.errors import UsageError
from s3prl_ofa.superb.compat import missing_packages

# normalizedDistance of dtw-python 1.9.0 for random distances: seed, rows, columns, open at both ends
ALIGNED = {
    (0, 5, 9, True): 0.12499223934085202,
    (0, 5, 9, False): 0.4846863885814951,
    (1, 12, 30, True): 0.1354481965277268,
    (2, 7, 7, True): 0.28448666058987737,
    (3, 20, 11, False): 0.2530735222684565,
}


@pytest.mark.parametrize("case", ALIGNED)
def test_alignment_is_that_of_dtw_python(case):
    seed, rows, columns, is_open = case
    distances = np.random.default_rng(seed).random((rows, columns))
    found = missing_packages.dtw(distances, "asymmetric", open_begin=is_open, open_end=is_open, keep_internals=False)
    assert found.normalizedDistance == pytest.approx(ALIGNED[case], rel=1e-12)


def test_other_alignments_name_the_package():
    with pytest.raises(UsageError, match="symmetric2 needs the package dtw-python: pip install dtw-python"):
        missing_packages.dtw(np.zeros((2, 2)), "symmetric2", open_begin=False, open_end=False)


def test_processes_divide_one_draw(monkeypatch):
    """Every process draws the same and takes its part; the next epoch draws otherwise."""
    monkeypatch.setattr("torch.distributed.is_available", lambda: True)
    monkeypatch.setattr("torch.distributed.get_world_size", lambda: 2)
    drawn = {}
    for rank in range(2):
        monkeypatch.setattr("torch.distributed.get_rank", lambda rank=rank: rank)
        torch.manual_seed(rank)  # whose state is not what counts
        sampler = missing_packages.DistributedSamplerWrapper(WeightedRandomSampler([1.0] * 50, 20))
        assert len(sampler) == 10
        for epoch in range(2):
            sampler.set_epoch(epoch)
            drawn[rank, epoch] = list(sampler)
    whole = list(WeightedRandomSampler([1.0] * 50, 20, generator=torch.Generator().manual_seed(0)))
    assert (drawn[0, 0], drawn[1, 0]) == (whole[::2], whole[1::2])
    assert drawn[0, 1] != drawn[0, 0]


def test_they_are_there_only_while_s3prl_is_imported(monkeypatch):
    """Other libraries must not take them for the packages; a package that is installed is used itself."""
    installed = {"sox": False, "catalyst": False, "dtw": False, "lxml": False, "h5py": True}
    monkeypatch.setattr(missing_packages, "installed", installed.__getitem__)
    for name in missing_packages.STAND_INS:
        monkeypatch.delitem(sys.modules, name, raising=False)
    with missing_packages.stand_ins():
        from catalyst.data.sampler import DistributedSamplerWrapper
        from lxml import etree

        assert DistributedSamplerWrapper is missing_packages.DistributedSamplerWrapper
        assert "h5py" not in sys.modules
    assert not {"catalyst", "catalyst.data", "lxml", "sox", "dtw"} & sys.modules.keys()
    assert etree.SubElement(etree.Element("list", of="all"), "term", score="1").get("score") == "1"


def test_a_folder_of_that_name_is_not_the_package(tmp_path, monkeypatch):
    """Python would import a folder without modules as an empty package."""
    (tmp_path / "sox").mkdir()
    monkeypatch.syspath_prepend(str(tmp_path))
    assert not missing_packages.installed("sox") and missing_packages.installed("numpy")


def test_xml_is_written_as_lxml_writes_it(tmp_path):
    root = ElementTree.Element("list", language="english")
    ElementTree.SubElement(root, "term", file="a", score="1.0000")
    path = tmp_path / "list.xml"
    missing_packages.PrettyTree(root).write(str(path), encoding="UTF-8", pretty_print=True)
    assert path.read_text().splitlines() == [
        '<list language="english">',
        '  <term file="a" score="1.0000" />',
        "</list>",
    ]


def test_missing_packages_are_named(monkeypatch):
    with pytest.raises(UsageError, match=r"h5py: pip install 's3prl-ofa\[superb\]'"):
        missing_packages.no_predictions("x.h5", "w")
    monkeypatch.setitem(sys.modules, "librosa", None)
    monkeypatch.delitem(sys.modules, "s3prl.downstream.separation_stft2.expert", raising=False)
    with pytest.raises(UsageError, match="-d separation_stft2 needs the package librosa: pip install librosa"):
        missing_packages.import_expert("separation_stft2")
