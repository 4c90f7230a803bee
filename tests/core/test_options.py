"""Options: which of its fields somebody read."""

import copy
from typing import Self

import pytest
from pydantic import Field, ValidationError, model_validator

from ouroboros_core import Options


class GateOptions(Options):
    """Two values that are set, and one that is not."""

    bias: float = Field(-2.0, description="at the start")
    width: int = Field(8, ge=1, description="of the state")
    prompt: int | None = Field(None, description="tokens of a prefix")

    @model_validator(mode="after")
    def _looks_at_everything(self) -> Self:
        assert self.bias is not None
        assert self.width > 0
        return self


@pytest.fixture
def options():
    options = GateOptions()
    options.forget_reads()
    return options


def test_reading_a_field_counts(options):
    assert options.unread() == ["bias", "width"]
    assert options.width == 8
    assert options.unread() == ["bias"]


def test_getattr_counts_as_reading(options):
    assert getattr(options, "bia" + "s") == -2.0
    assert options.unread() == ["width"]


LOOKING = {
    "model_dump": lambda options: options.model_dump(),
    "model_dump_json": lambda options: options.model_dump_json(),
    "equality": lambda options: options == GateOptions(),
    "repr": repr,
    "str": str,
    "iteration": dict,
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "model_copy": lambda options: options.model_copy(update={"width": 9}),
    "fields_set": lambda options: options.model_fields_set,
    "causal": lambda options: options.causal,
    "unread": lambda options: options.unread(),
}


@pytest.mark.parametrize("look", LOOKING.values(), ids=LOOKING)
def test_looking_at_all_of_it_does_not_count(options, look):
    look(options)
    assert options.unread() == ["bias", "width"]


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, GateOptions.model_copy])
def test_reading_a_copy_is_not_reading_the_original(options, duplicate):
    assert duplicate(options).width == 8
    assert options.unread() == ["bias", "width"]


def test_options_are_equal_by_their_values_whoever_read_them(options):
    other = GateOptions()
    other.forget_reads()
    assert other.width == 8
    assert options == other
    assert options != GateOptions(width=9)


def test_a_field_that_is_none_is_not_asked_for(options):
    assert "prompt" not in options.unread()


def test_a_field_that_is_set_is_asked_for_even_where_its_default_is_none():
    options = GateOptions(prompt=3)
    options.forget_reads()
    assert options.unread() == ["bias", "width", "prompt"]


def test_forget_reads_starts_anew(options):
    assert (options.bias, options.width) == (-2.0, 8)
    assert options.unread() == []
    options.forget_reads()
    assert options.unread() == ["bias", "width"]


def test_what_validation_read_is_known_until_forgotten():
    assert GateOptions().unread() == []


def test_two_options_keep_records_of_their_own(options):
    other = GateOptions()
    other.forget_reads()
    assert other.bias == -2.0
    assert options.unread() == ["bias", "width"]


def test_an_unknown_field_is_refused():
    with pytest.raises(ValidationError, match="bais"):
        GateOptions(bais=1)


def test_a_default_that_breaks_its_own_rule_is_refused():
    class Wrong(Options):
        width: int = Field(0, ge=1, description="of the state")

    with pytest.raises(ValidationError, match="width"):
        Wrong()
