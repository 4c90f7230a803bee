"""Each term of the loss against its equation."""

import math
from dataclasses import replace

import pytest
import torch

from ouroboros_core.contracts import Depth, Slot
from ouroboros_core.kept import StockLM
from ouroboros_core.losses import IGNORE
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
    trace = built.model.trace(ids)
    torch.testing.assert_close(terms["next-token"], trace.nll(labels).sum())
    torch.testing.assert_close(terms["ponder"], 0.01 * (trace.taken + trace.remainder)[:, :6].sum())
    logits, theirs = trace.logits().log_softmax(-1), intact(input_ids=ids).logits.log_softmax(-1)
    torch.testing.assert_close(terms["distill"], (theirs.exp() * (theirs - logits))[:, :6].sum())


def turns_and_shares(turns=4, seed=0, logits=None):
    """A trace of several turns, and leaves for its states and (as a softmax) its shares."""
    generator = torch.Generator().manual_seed(seed)
    states = torch.randn(turns, B, T, D, generator=generator).requires_grad_()
    logits = torch.randn(turns, B, T, generator=generator) if logits is None else logits
    logits.requires_grad_()
    trace = replace(a_trace(seed), turns=list(states), shares=list(logits.softmax(0)))
    return trace, states, logits


def plain_losses(trace, labels):
    """-log p(label) of every turn, token by token; zero where ignored. (N, B, T)."""
    losses = torch.zeros(len(trace.turns), B, T)
    for n, hidden in enumerate(trace.turns):
        for b in range(B):
            for t in range(T):
                if labels[b, t] != IGNORE:
                    losses[n, b, t] = -torch.softmax(trace.head @ hidden[b, t].detach(), 0)[labels[b, t]].log()
    return losses


@pytest.mark.parametrize(
    ("weights", "each"), [("equal", [0.25, 0.25, 0.25, 0.25]), ("progressive", [0.1, 0.2, 0.3, 0.4])]
)
def test_every_turn_is_the_weighted_mean_of_the_turns_losses(weights, each, objective, labels):
    trace, _, _ = turns_and_shares()
    found = objective("every-turn", weight=0.5, weights=weights)(trace, labels)
    expected = 0.5 * sum(w * loss for w, loss in zip(each, plain_losses(trace, labels), strict=True))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("weights", ["equal", "progressive"])
def test_one_turn_of_every_turn_is_next_token(weights, objective, labels):
    trace = a_trace()
    once = replace(trace, turns=[trace.hidden])
    found = objective("every-turn", weights=weights)(once, labels)
    torch.testing.assert_close(found, objective("next-token")(trace, labels))


@pytest.mark.parametrize(("beta", "prior"), [(0.01, 0.2), (0.5, 0.7)])
def test_ponder_kl_is_the_expected_loss_and_the_divergence_from_a_cut_geometric_prior(beta, prior, objective, labels):
    trace, _, _ = turns_and_shares()
    found = objective("ponder-kl", beta=beta, prior=prior)(trace, labels)
    geometric = [prior * (1 - prior) ** n for n in range(4)]
    losses = plain_losses(trace, labels)
    expected = torch.zeros(B, T)
    for n, p in enumerate(share.detach() for share in trace.shares):
        expected += p * losses[n] + beta * p * (p / (geometric[n] / sum(geometric))).log()
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_the_divergence_from_the_prior_is_nothing_where_the_shares_are_the_prior(objective, labels):
    prior = torch.tensor([0.3 * 0.7**n for n in range(4)]).log()[:, None, None].expand(4, B, T).clone()
    trace, _, _ = turns_and_shares(logits=prior)
    apart = [objective("ponder-kl", beta=beta, prior=0.3)(trace, labels) for beta in (0.0, 10.0)]
    torch.testing.assert_close(*apart, atol=1e-5, rtol=0)


@pytest.mark.parametrize("beta", [0.1, 1.0])
def test_exit_gate_is_the_expected_loss_less_the_entropy_of_the_exit(beta, objective, labels):
    trace, _, _ = turns_and_shares()
    found = objective("exit-gate", beta=beta)(trace, labels)
    expected = torch.zeros(B, T)
    for p, loss in zip((share.detach() for share in trace.shares), plain_losses(trace, labels), strict=True):
        expected += p * loss - beta * -(p * p.log())
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_the_entropy_is_a_divergence_from_a_uniform_prior_but_for_a_constant(objective, labels):
    """A geometric prior that hardly falls is as good as uniform."""
    trace, _, _ = turns_and_shares()
    uniform = objective("ponder-kl", beta=0.1, prior=1e-6)(trace, labels)
    found = objective("exit-gate", beta=0.1)(trace, labels)
    torch.testing.assert_close(uniform - found, torch.full((B, T), 0.1 * math.log(4)), atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["ponder-kl", "exit-gate"])
def test_every_turn_and_every_share_has_a_gradient(name, objective, labels):
    trace, states, logits = turns_and_shares()
    objective(name)(trace, labels)[labels != IGNORE].sum().backward()
    scored = labels != IGNORE
    assert states.grad[:, scored].any(-1).all()
    assert logits.grad[:, scored].all()


@pytest.mark.parametrize("name", ["ponder-kl", "exit-gate"])
def test_a_share_of_zero_gives_finite_losses_and_gradients(name, objective, labels):
    trace, states, _ = turns_and_shares(turns=3)
    p = torch.tensor([1.0, 0.0, 0.0])[:, None, None].expand(3, B, T).clone().requires_grad_()
    found = objective(name, beta=1.0)(replace(trace, shares=list(p)), labels)
    found.sum().backward()
    first = plain_losses(trace, labels)[0]
    constant = {"ponder-kl": -math.log(0.2 / (0.2 + 0.16 + 0.128)), "exit-gate": 0.0}[name]
    torch.testing.assert_close(found, first + constant, atol=1e-5, rtol=1e-5)
    assert p.grad.isfinite().all()
    assert states.grad.isfinite().all()


def test_objectives_say_what_they_want(host, objective):
    names = ("next-token", "every-turn", "ponder-kl", "exit-gate")
    wants = {name: (objective(name).wants_turns, host.find(Slot.OBJECTIVE, name).needs_shares) for name in names}
    assert wants == {
        "next-token": (False, False),
        "every-turn": (True, False),
        "ponder-kl": (True, True),
        "exit-gate": (True, True),
    }
    assert not any(objective(name).wants_teacher for name in names)


@pytest.mark.parametrize(("name", "halter"), [("exit-gate", "exit-gate"), ("ponder-kl", "ponder")])
def test_a_gate_learns_from_the_objective_that_reads_its_shares(name, halter, make, ids):
    built = make(objective={"use": name}, halter={"use": halter})
    terms = Loss(built, None).train()(ids, ids, Depth.full(4))
    terms[name].backward()
    (loop,) = built.model.loops
    assert all(p.grad.any() for p in loop.halter.parameters())


def test_the_losses_of_the_turns_are_those_of_models_that_end_there(make, ids):
    built = make(objective={"use": "every-turn"})
    found = Loss(built, None)(ids, ids, Depth.full(3))["every-turn"]
    each = [built.model.trace(ids, depth=Depth.full(n)).nll(ids).sum() for n in (1, 2, 3)]
    torch.testing.assert_close(found, sum(each) / 3)
