from pathlib import Path

import pytest
import torch

from tests.cli.checkpoints import weights


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    torch.save(weights(), tmp_path / "a.pt")
    return tmp_path / "a.pt"
