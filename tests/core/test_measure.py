"""What is measured of a model's layers, against the library's own hidden states."""

import json
import math

import pytest
import torch

from ouroboros_core import measure
from ouroboros_core.errors import UserError
from ouroboros_core.resolve import resolve
from ouroboros_core.testing import tiny_model

LAYERS = 6


@pytest.fixture
def blocks():
    """(3, 13) of the tiny model's tokens, as training text comes."""
    return torch.randint(0, 320, (3, 13), generator=torch.Generator().manual_seed(0))


@pytest.fixture
def measured(host, blocks):
    intact = tiny_model()
    return measure.measure(intact, host.anatomy(intact.config), blocks)


def library_states(intact, ids):
    """The library's states before each layer: (L, N, D), in float64. Its last one, behind the norm, is left out."""
    found = intact(input_ids=ids, output_hidden_states=True, use_cache=False).hidden_states
    return torch.stack(found[:LAYERS]).flatten(1, 2).double()


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_the_states_are_those_before_each_layer_and_behind_the_last(family, host, blocks):
    intact = tiny_model(family=family)
    found = measure.states(intact, host.anatomy(intact.config), blocks)
    torch.testing.assert_close(found[:LAYERS].double(), library_states(intact, blocks), atol=1e-5, rtol=1e-5)
    last = intact(input_ids=blocks, output_hidden_states=True, use_cache=False).hidden_states[LAYERS]
    torch.testing.assert_close(intact.model.norm(found[LAYERS]), last.flatten(0, 1), atol=1e-5, rtol=1e-5)


def test_cosine_and_angle_are_means_over_the_tokens_of_the_text(measured, blocks):
    h = library_states(tiny_model(), blocks[:, :-1])  # a block's last token is a label only
    for a in range(LAYERS):
        for b in range(LAYERS):
            cosines = [float(x @ y / x.norm() / y.norm()) for x, y in zip(h[a], h[b], strict=True)]
            angles = [math.acos(min(1, cosine)) / math.pi for cosine in cosines]
            assert float(measured.cosine[a, b]) == pytest.approx(sum(cosines) / len(cosines), abs=1e-5)
            assert float(measured.angle[a, b]) == pytest.approx(sum(angles) / len(angles), abs=3e-4)
    assert measured.tokens == 36


def test_a_state_does_not_turn_from_itself_and_turning_is_mutual(measured):
    assert measured.cosine.shape == measured.angle.shape == (LAYERS + 1, LAYERS + 1)
    torch.testing.assert_close(measured.cosine.diagonal(), torch.ones(LAYERS + 1, dtype=torch.float64))
    torch.testing.assert_close(measured.angle.diagonal(), torch.zeros(7, dtype=torch.float64), atol=3e-4, rtol=0)
    torch.testing.assert_close(measured.angle, measured.angle.T, atol=3e-4, rtol=0)
    assert 0 < measured.angle[0, 1] < 1


def test_only_a_splitter_that_measures_makes_the_model_read(host):
    settings = resolve(host, [])
    assert measure.measured(settings, None, None, None) is None


@pytest.mark.parametrize(("calibration", "tokens"), [(256, 256), (300, 320)])
def test_as_much_text_is_read_as_was_asked_for_in_whole_sequences(calibration, tokens, host):
    intact = tiny_model()
    tables = {"splitter": {"use": "block-influence"}, "data": {"length": 64, "calibration": calibration}}
    blocks = torch.randint(0, 320, (9, 65), generator=torch.Generator().manual_seed(0))
    found = measure.measured(resolve(host, [tables]), intact, host.anatomy(intact.config), blocks)
    assert found.tokens == tokens


def test_statistics_survive_a_file_to_the_bit(measured, tmp_path):
    (tmp_path / "layers.json").write_text(measure.dumps(measured))
    found = measure.loads(tmp_path / "layers.json")
    assert torch.equal(found.cosine, measured.cosine)
    assert torch.equal(found.angle, measured.angle)
    assert found.tokens == measured.tokens


@pytest.mark.parametrize(
    "text",
    [
        '{"tokens": 3, "cosine": [[1.0',
        "[]",
        json.dumps({"tokens": 3, "cosine": [[1.0]]}),
        json.dumps({"tokens": 3, "cosine": [[1.0], [1.0, 1.0]], "angle": [[0.0]]}),
        json.dumps({"tokens": 3, "cosine": None, "angle": [[0.0]]}),
        json.dumps({"cosine": [[1.0]], "angle": [[0.0]]}),
    ],
)
def test_a_damaged_file_is_refused_by_name(text, tmp_path):
    (tmp_path / "layers.json").write_text(text)
    with pytest.raises(UserError, match=r"layers\.json cannot be read"):
        measure.loads(tmp_path / "layers.json")


def test_a_file_that_is_not_there_is_refused_by_name(tmp_path):
    with pytest.raises(UserError, match=r"layers\.json cannot be read"):
        measure.loads(tmp_path / "layers.json")
