"""What the tests of core and plugins share: the built-in parts, and small models made of them."""

import pytest
import torch

from ouroboros_core.build import build
from ouroboros_core.host import PluginHost
from ouroboros_core.resolve import resolve
from ouroboros_core.testing import tiny_model


@pytest.fixture(scope="session")
def host():
    """A host with the built-in parts only."""
    return PluginHost.installed(third_party=False)


@pytest.fixture(scope="session")
def make(host):
    """Build a recursive model from tables of settings; rank 4, because the tiny model's linears are small."""

    def make(intact=None, **tables):
        return build(resolve(host, [{"modulator": {"rank": 4}}, tables]), host, intact or tiny_model())

    return make


@pytest.fixture(scope="session")
def randomise():
    """Move every parameter of a module by seeded noise, for good."""

    def randomise(module, spread=0.05, seed=1):
        generator = torch.Generator().manual_seed(seed)
        for parameter in module.parameters():
            parameter.data += spread * torch.randn(parameter.shape, generator=generator)
        return module

    return randomise


@pytest.fixture
def ids():
    """(2, 12) token ids of the tiny model."""
    return torch.randint(0, 320, (2, 12), generator=torch.Generator().manual_seed(0))
