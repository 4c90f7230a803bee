"""Losses over the vocabulary against log-softmax written out, in both ways of computing them."""

import pytest
import torch
from torch import Tensor

from ouroboros_core import losses
from ouroboros_core.losses import IGNORE, token_kl, token_nll

B, T, D, V = 2, 7, 8, 50


@pytest.fixture(params=["whole", "chunked"])
def branch(request, monkeypatch):
    """Both ways; the chunked one with chunks smaller than the batch."""
    if request.param == "chunked":
        monkeypatch.setattr(losses, "FITS", 0)
        monkeypatch.setattr(losses, "CHUNK", 4)
    return request.param


def draw(*shape, seed=0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def some_labels(ignored=((0, 2), (1, 6))) -> Tensor:
    labels = torch.randint(0, V, (B, T), generator=torch.Generator().manual_seed(5))
    for spot in ignored:
        labels[spot] = IGNORE
    return labels


def plain_nll(hidden, head, labels):
    """-log softmax at the label, token by token; zero where ignored."""
    logits = hidden.double() @ head.double().T
    log_p = logits - logits.exp().sum(-1, keepdim=True).log()
    found = -log_p.gather(-1, labels.clamp(min=0)[..., None])[..., 0]
    return torch.where(labels == IGNORE, 0.0, found).float()


def plain_kl(student, teacher, temperature):
    p, q = (torch.softmax(logits.double() / temperature, -1) for logits in (teacher, student))
    return ((p * (p.log() - q.log())).sum(-1) * temperature**2).float()


def test_the_loss_is_minus_the_log_probability_of_each_label(branch):
    hidden, head, labels = draw(B, T, D), draw(V, D, seed=1), some_labels()
    found = token_nll(hidden, head, labels)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, plain_nll(hidden, head, labels), atol=1e-5, rtol=1e-5)
    assert found[0, 2] == found[1, 6] == 0


def test_the_gradient_is_that_of_the_plain_loss(branch):
    head, labels, weight = draw(V, D, seed=1), some_labels(), draw(B, T, seed=3)
    mine, theirs = (draw(B, T, D).requires_grad_() for _ in range(2))
    (token_nll(mine, head, labels) * weight).sum().backward()
    (plain_nll(theirs, head, labels) * weight).sum().backward()
    torch.testing.assert_close(mine.grad, theirs.grad, atol=1e-5, rtol=1e-4)


def test_the_mean_in_bfloat16_is_not_off(branch):
    hidden, head = draw(8, 256, D).bfloat16(), draw(V, D, seed=1).bfloat16()
    labels = torch.randint(0, V, (8, 256), generator=torch.Generator().manual_seed(5))
    found = token_nll(hidden, head, labels).mean()
    assert found.dtype == torch.float32
    assert abs(float(found - plain_nll(hidden, head, labels).mean())) < 0.005


def test_a_float32_state_may_meet_a_bfloat16_head(branch):
    with torch.autocast("cpu", torch.bfloat16):
        found = token_nll(draw(B, T, D), draw(V, D, seed=1).bfloat16(), some_labels())
    expected = plain_nll(draw(B, T, D), draw(V, D, seed=1), some_labels())
    torch.testing.assert_close(found, expected, atol=0.1, rtol=0.02)


@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize(("fits", "chunk"), [(2**28, 512), (0, 512), (0, 4)])
def test_the_divergence_is_that_of_the_two_distributions(fits, chunk, temperature, monkeypatch):
    monkeypatch.setattr(losses, "FITS", fits)
    monkeypatch.setattr(losses, "CHUNK", chunk)
    hidden, head, teacher, theirs = draw(B, T, D), draw(V, D, seed=1), draw(B, T, D, seed=2), draw(V, D, seed=3)
    found = token_kl(hidden, head, teacher, theirs, temperature)
    expected = plain_kl(hidden @ head.T, teacher @ theirs.T, temperature)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_a_model_is_at_no_distance_from_itself():
    hidden, head = draw(B, T, D), draw(V, D, seed=1)
    torch.testing.assert_close(token_kl(hidden, head, hidden, head, 2.0), torch.zeros(B, T), atol=1e-6, rtol=0)


@pytest.mark.parametrize("fits", [2**28, 0])
def test_the_gradient_of_the_divergence_is_that_of_the_plain_one(fits, monkeypatch):
    monkeypatch.setattr(losses, "FITS", fits)
    monkeypatch.setattr(losses, "CHUNK", 4)
    head, teacher = draw(V, D, seed=1), draw(B, T, D, seed=2)
    mine, theirs = (draw(B, T, D).requires_grad_() for _ in range(2))
    token_kl(mine, head, teacher, head, 1.5).sum().backward()
    plain_kl(theirs @ head.T, teacher @ head.T, 1.5).sum().backward()
    torch.testing.assert_close(mine.grad, theirs.grad, atol=1e-5, rtol=1e-4)


def test_the_teacher_gets_no_gradient():
    student, teacher = draw(B, T, D).requires_grad_(), draw(B, T, D, seed=2).requires_grad_()
    head, theirs = draw(V, D, seed=1), draw(V, D, seed=3).requires_grad_()
    token_kl(student, head, teacher, theirs, 1.0).sum().backward()
    assert student.grad.any()
    assert teacher.grad is None
    assert theirs.grad is None


@pytest.mark.parametrize("fits", [2**28, 0])
@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_tokens_weigh_in_the_gradient_of_the_divergence_and_the_head_gets_one_too(fits, temperature, monkeypatch):
    monkeypatch.setattr(losses, "FITS", fits)
    monkeypatch.setattr(losses, "CHUNK", 4)
    teacher, theirs, weight = draw(B, T, D, seed=2), draw(V, D, seed=3), draw(B, T, seed=4)
    hidden, head = draw(B, T, D).requires_grad_(), draw(V, D, seed=1).requires_grad_()
    found = (token_kl(hidden, head, teacher, theirs, temperature) * weight).sum()
    plain = (plain_kl(hidden @ head.T, teacher @ theirs.T, temperature) * weight).sum()
    for mine, expected in zip(*(torch.autograd.grad(loss, (hidden, head)) for loss in (found, plain)), strict=True):
        torch.testing.assert_close(mine, expected, atol=1e-5, rtol=1e-4)


def test_the_divergence_of_bfloat16_logits_is_taken_in_float32():
    hidden, head, teacher = (
        draw(B, T, D).bfloat16().requires_grad_(),
        draw(V, D, seed=1).bfloat16(),
        draw(B, T, D, seed=2),
    )
    teacher = teacher.bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        found = token_kl(hidden, head, teacher, head, 1.5)
    assert found.dtype == torch.float32
    ours, theirs = (hidden @ head.T).detach(), teacher @ head.T
    torch.testing.assert_close(found.detach(), plain_kl(ours, theirs, 1.5), atol=1e-5, rtol=1e-4)
    found.sum().backward()
    wide = ours.float().requires_grad_()
    plain_kl(wide, theirs, 1.5).sum().backward()
    torch.testing.assert_close(hidden.grad.float(), wide.grad @ head.float(), atol=0.02, rtol=0.02)
