"""The short flags: what their help says, against the settings they stand for."""

import re
from typing import get_args

from ouroboros_cli.flags import SHORT
from ouroboros_core.settings import BaseSettings


def test_the_help_of_dtype_names_every_dtype_that_the_setting_takes_and_no_other():
    _, _, help_text = SHORT["dtype"]
    taken = get_args(BaseSettings.model_fields["dtype"].annotation)
    assert sorted(re.findall(r"\w*float\d+", help_text)) == sorted(taken)
