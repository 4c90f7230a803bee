"""Halters: when a token stops, and which of its states is read."""

from ouroboros_core.contracts import Part, Slot
from ouroboros_core.options import NoOptions
from ouroboros_plugins.halters.act import ACTHalter, ACTOptions
from ouroboros_plugins.halters.exit_gate import ExitGateHalter, ExitGateOptions
from ouroboros_plugins.halters.fixed import FixedHalter
from ouroboros_plugins.halters.kl import KLHalter, KLOptions
from ouroboros_plugins.halters.latent_diff import LatentDiffHalter, LatentDiffOptions
from ouroboros_plugins.halters.ponder import PonderHalter, PonderHalterOptions

PARTS = (
    Part(
        Slot.HALTER,
        "fixed",
        NoOptions,
        lambda options, facts: FixedHalter(),
        "Every token takes every turn; the last state is read.",
        null=True,
        default=True,
    ),
    Part(
        Slot.HALTER,
        "act",
        ACTOptions,
        lambda options, facts: ACTHalter(facts.width, options.bias, options.epsilon, options.unit),
        "Adaptive computation time: each token stops by itself, and the weighted sum of its states is read.",
        "Graves 2016; Dehghani 2018",
        gives_shares=True,
    ),
    Part(
        Slot.HALTER,
        "kl",
        KLOptions,
        lambda options, facts: KLHalter(options.threshold),
        "At evaluation a token stops when a turn hardly changes its next-token distribution. Nothing is learned.",
        "Geiping 2025",
        reads_logits=True,
    ),
    Part(
        Slot.HALTER,
        "latent-diff",
        LatentDiffOptions,
        lambda options, facts: LatentDiffHalter(options.threshold),
        "At evaluation a token stops when a turn hardly moves its state. Nothing is learned.",
        "Geiping 2025, public code",
    ),
    Part(
        Slot.HALTER,
        "exit-gate",
        ExitGateOptions,
        lambda options, facts: ExitGateHalter(facts.width, options.quantile, options.bias),
        "A learned exit: at evaluation a token stops at a quantile of its exit distribution.",
        "Ouro (ByteDance 2025)",
        gives_shares=True,
        read_by_objective=True,
    ),
    Part(
        Slot.HALTER,
        "ponder",
        PonderHalterOptions,
        lambda options, facts: PonderHalter(facts.width, options.prior),
        "A learned exit: at evaluation a token's last turn is drawn from its exit distribution.",
        "PonderNet (Banino 2021)",
        gives_shares=True,
        read_by_objective=True,
    ),
)
