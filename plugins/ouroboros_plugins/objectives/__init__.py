"""Objectives: terms of the loss, token by token."""

from ouroboros_core.contracts import Part, Slot
from ouroboros_plugins.objectives.distill import Distill, DistillOptions
from ouroboros_plugins.objectives.every_turn import EveryTurn, EveryTurnOptions
from ouroboros_plugins.objectives.exit_gate import ExitGate, ExitGateObjectiveOptions
from ouroboros_plugins.objectives.next_token import NextToken, NextTokenOptions
from ouroboros_plugins.objectives.ponder import Ponder, PonderOptions
from ouroboros_plugins.objectives.ponder_kl import PonderKL, PonderKLOptions

PARTS = (
    Part(
        Slot.OBJECTIVE,
        "next-token",
        NextTokenOptions,
        lambda options, facts: NextToken(options.weight),
        "Negative log-likelihood of the next token.",
        default=True,
    ),
    Part(
        Slot.OBJECTIVE,
        "ponder",
        PonderOptions,
        lambda options, facts: Ponder(options.weight),
        "Ponder cost: turns taken plus remainder.",
        "Graves 2016",
        needs_shares=True,
    ),
    Part(
        Slot.OBJECTIVE,
        "distill",
        DistillOptions,
        lambda options, facts: Distill(options.weight, options.temperature),
        "KL divergence to the intact base model.",
        "Hinton 2015; Bae 2024",
    ),
    Part(
        Slot.OBJECTIVE,
        "every-turn",
        EveryTurnOptions,
        lambda options, facts: EveryTurn(options.weight, options.weights),
        "Negative log-likelihood of the next token after every turn, as if the loop had ended there.",
        "Bae 2024",
    ),
    Part(
        Slot.OBJECTIVE,
        "ponder-kl",
        PonderKLOptions,
        lambda options, facts: PonderKL(options.beta, options.prior),
        "In place of next-token: the expected loss under the halter's shares, which are drawn to a geometric prior.",
        "PonderNet (Banino 2021)",
        needs_shares=True,
    ),
    Part(
        Slot.OBJECTIVE,
        "exit-gate",
        ExitGateObjectiveOptions,
        lambda options, facts: ExitGate(options.beta),
        "In place of next-token: the expected loss under the halter's shares, less their entropy.",
        "Ouro (ByteDance 2025), stage I",
        needs_shares=True,
    ),
)
