"""Fixtures for all tests; and every shape and type annotation of fmlab is checked while they run."""

import os
from pathlib import Path

import pytest
import torch
from at_hand import unavailable
from jaxtyping import install_import_hook

install_import_hook("fmlab", "beartype.beartype")  # before anything imports fmlab
torch.set_num_threads(1)  # at the size of the tiny models a second thread does nothing but wait


@pytest.fixture(scope="session")
def lm():
    """The real default model."""
    import fmlab as fm
    from fmlab.models import ModelError

    try:
        return fm.load("smollm2-135m")
    except ModelError as error:
        unavailable(f"the default model cannot be had: {error}")


@pytest.fixture(scope="session")
def data() -> Path:
    """The folder of measuring data that the environment variable FMLAB_DATA names."""
    given = os.environ.get("FMLAB_DATA")
    if not given:
        unavailable("FMLAB_DATA is not set; let it name a folder with qmsum/, mooncake/ and prose/")
    if not Path(given).is_dir():
        pytest.fail(f"FMLAB_DATA={given} is no folder", pytrace=False)
    return Path(given)
