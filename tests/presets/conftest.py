"""What the tests of presets share."""

import pytest

from ouroboros_core.resolve import resolve


@pytest.fixture(scope="session")
def settings_of(host):
    """The settings of a preset, with more tables on top."""

    def settings_of(name, *layers):
        return resolve(host, [host.preset(name).settings, *layers])

    return settings_of
