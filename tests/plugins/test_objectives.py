"""Each term of the loss against its equation."""

import pytest
import torch

from ouroboros_core.contracts import Depth, Slot
from ouroboros_core.losses import IGNORE
from ouroboros_core.model import StockLM
from ouroboros_core.testing import loop_facts, tiny_model
from ouroboros_core.trace import Trace
from ouroboros_core.training import Loss

B, T, D, V = 2, 5, 8, 20


def a_trace(seed=0, teacher=None):
    generator = torch.Generator().manual_seed(seed)
    hidden, head = torch.randn(B, T, D, generator=generator), torch.randn(V, D, generator=generator)
    taken = torch.randint(1, 5, (B, T), generator=generator).float()
    return Trace(hidden, head, taken, torch.rand(B, T, generator=generator), teacher)


@pytest.fixture
def objective(host):
    def objective(name, **options):
        part = host.find(Slot.OBJECTIVE, name)
        return part.build(part.options(**options), loop_facts(D))

    return objective


@pytest.fixture
def labels():
    labels = torch.randint(0, V, (B, T), generator=torch.Generator().manual_seed(9))
    labels[0, 3] = IGNORE
    return labels


@pytest.mark.parametrize("weight", [1.0, 0.25])
def test_next_token_is_the_weighted_log_loss_of_the_label_in_place(weight, objective, labels):
    trace = a_trace()
    found = objective("next-token", weight=weight)(trace, labels)
    for b in range(B):
        for t in range(T):
            p = torch.softmax(trace.head @ trace.hidden[b, t], 0)
            expected = 0.0 if labels[b, t] == IGNORE else -weight * p[labels[b, t]].log()
            torch.testing.assert_close(found[b, t], torch.as_tensor(expected), atol=1e-5, rtol=1e-5)


def test_ponder_is_the_price_of_turns_and_remainder(objective, labels):
    trace = a_trace()
    found = objective("ponder", weight=0.03)(trace, labels)
    torch.testing.assert_close(found, 0.03 * trace.taken + 0.03 * trace.remainder)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_distillation_is_the_divergence_from_the_teacher_at_a_temperature(temperature, objective, labels):
    teacher = a_trace(1)
    student = a_trace(0, teacher)
    found = objective("distill", weight=0.5, temperature=temperature)(student, labels)
    p = torch.softmax(teacher.hidden @ teacher.head.T / temperature, -1)
    q = torch.softmax(student.hidden @ student.head.T / temperature, -1)
    expected = 0.5 * temperature**2 * (p * (p / q).log()).sum(-1)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_distillation_alone_wants_a_teacher(objective):
    wants = {name: objective(name).wants_teacher for name in ("next-token", "ponder", "distill")}
    assert wants == {"next-token": False, "ponder": False, "distill": True}


def test_each_term_is_summed_over_the_labelled_tokens_only(make, host, ids):
    built = make(objective={"use": ["next-token", "ponder", "distill"]}, halter={"use": "act"})
    intact = tiny_model()
    labels = ids.roll(-1, 1)
    labels[:, 6:] = IGNORE
    terms = Loss(built, StockLM(intact, host.anatomy(intact.config)))(ids, labels, Depth.full(4))
    trace = built.model(ids)
    torch.testing.assert_close(terms["next-token"], trace.nll(labels).sum())
    torch.testing.assert_close(terms["ponder"], 0.01 * (trace.taken + trace.remainder)[:, :6].sum())
    logits, theirs = trace.logits().log_softmax(-1), intact(input_ids=ids).logits.log_softmax(-1)
    torch.testing.assert_close(terms["distill"], (theirs.exp() * (theirs - logits))[:, :6].sum())
