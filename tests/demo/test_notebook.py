"""The notebook of the documentation runs from top to bottom and is stored without outputs."""

import nbformat
import pytest
from paths import ROOT

NOTEBOOK = ROOT / "docs" / "notebooks" / "tour.ipynb"


@pytest.fixture
def notebook() -> nbformat.NotebookNode:
    return nbformat.read(NOTEBOOK, as_version=4)


def test_stored_without_outputs(notebook):
    """A valid notebook without outputs, so that diffs are readable."""
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert code and not any(cell.outputs or cell.execution_count for cell in code)


@pytest.mark.slow
def test_runs(notebook, tmp_path, monkeypatch):
    """Every cell, in a folder of its own: drawings at three rates, speakers identified, and the plot of the sweep."""
    from nbclient import NotebookClient

    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    NotebookClient(notebook, timeout=1800, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    printed = "".join(output.text for output in outputs if output.output_type == "stream")
    pictures = [output for output in outputs if "image/png" in output.get("data", {})]
    assert len(pictures) == 5, printed  # three rates, the chosen frame, the plot
    assert "20.1 ms per frame: 199 frames" in printed and "79.9 ms per frame: 50 frames" in printed
    assert len(list(tmp_path.glob("demo/*/demo.png"))) == 1, printed
    assert (tmp_path / "sweeps" / "rates" / "report" / "results.csv").read_text().count("\n") == 1 + 3, printed
