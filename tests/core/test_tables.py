"""Rows by turn."""

import pytest
import torch

from ouroboros_core.errors import UserError
from ouroboros_core.tables import TurnTable


def test_each_turn_has_its_row_and_later_turns_reuse_the_last_trained_one():
    table = TurnTable(5, 3, 2)
    table.weight.data = torch.arange(10.0).view(5, 2)
    assert [table(index)[0].item() for index in (0, 1, 2, 3, 4, 50)] == [0, 2, 4, 4, 4, 4]


def test_a_row_may_have_any_shape_and_starts_at_its_fill():
    assert torch.equal(TurnTable(4, 4, 2, 3, fill=1.5)(1), torch.full((2, 3), 1.5))


def test_the_gradient_reaches_the_row_that_was_read_only():
    table = TurnTable(4, 2, 3)
    table(7).sum().backward()
    assert table.weight.grad.sum(1).tolist() == [0, 3, 0, 0]


def test_more_trained_turns_than_rows_are_refused():
    with pytest.raises(UserError, match="5 turns are trained but the part has rows for 4: raise its `rows`"):
        TurnTable(4, 5, 2)
    with pytest.raises(UserError, match="but the part has rows for 4: train fewer"):
        TurnTable.starting(torch.ones(4, 2), 5, remedy="train fewer")


def test_a_table_may_start_as_given_rows_which_it_copies_in_float32():
    rows = torch.arange(6.0).view(3, 2).bfloat16()
    table = TurnTable.starting(rows, 2)
    rows.zero_()
    assert table(1).tolist() == [2, 3]
    assert table(2).tolist() == [2, 3]
    assert table.weight.dtype == torch.float32
    assert table.weight.requires_grad
