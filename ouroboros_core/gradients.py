"""Dead parameters: trained, counted, and never moved by anything."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ouroboros_core.errors import CheckFailed
from ouroboros_core.reporting import CheckResult
from ouroboros_core.tables import TurnTable

WATCHED_STEPS = 3  # a zero-initialised head hides the layers before it for one step


class GradientWatch:
    """Watches which rows of the trainable parameters have had a gradient.

    A row is one index of the first dimension. Rows of an embedding whose token has not occurred cannot be reached, and
    are not asked for; nor are rows of a `TurnTable` that turns have read with gradient in a single step or in none,
    since then one factor of a product is zero yet, and hides the other.

    Steps of one turn tell less: a learned exit has nothing to decide there, and a first state of zeros hides who reads
    it. So three of them suffice where everything moved, or where a parameter is in no graph at all; else the watch goes
    on until three deeper steps are seen.

    Args:
        exits: the halter learns when to stop, and is in no graph of a single turn.
    """

    def __init__(self, model: nn.Module, exits: bool = False) -> None:
        self.parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        tables = [module for module in model.modules() if isinstance(module, TurnTable)]
        embeddings = [module for module in model.modules() if isinstance(module, nn.Embedding)]
        self.read: dict[int, set[int]] = {id(m.weight): set() for m in (*tables, *embeddings)}  # rows, by parameter
        self.first: dict[tuple[int, int], int] = {}  # the step that first read a row of a table
        self.hooks = [table.register_forward_hook(self._note_row) for table in tables]
        self.hooks += [embedding.register_forward_hook(self._note_tokens) for embedding in embeddings]
        self.alive: dict[str, Tensor] = {}
        self.exits, self.done = exits, False
        self.steps = self.deep = 0

    def look(self, deep: bool = True) -> None:
        """Note the gradients of a step; after the last watched step, do nothing.

        Args:
            deep: the step took two turns or more, or none ever does.
        """
        if self.done:
            return
        self.steps, self.deep = self.steps + 1, self.deep + deep
        for name, parameter in self.parameters.items():
            rows = len(parameter) if parameter.ndim else 1
            if parameter.grad is not None:
                moved = parameter.grad.detach().reshape(rows, -1).ne(0).any(-1)
                self.alive[name] = self.alive.get(name, torch.zeros_like(moved)) | moved
        enough = self.steps >= WATCHED_STEPS and not self._may_wake()
        self.done = enough or self.deep == WATCHED_STEPS
        if self.done:
            for hook in self.hooks:
                hook.remove()

    def verdict(self) -> CheckResult:
        """The result, when the watched steps are over.

        Raises:
            CheckFailed: a reachable row never had a gradient.
        """
        if not self.done:
            return CheckResult("dead parameters", True, f"not checked: it takes {WATCHED_STEPS} steps")
        if dead := self._dead():
            listed = "; ".join(f"{name}: {missing}" for name, missing in list(dead.items())[:4])
            raise CheckFailed(
                f"dead parameters: no gradient in the first {WATCHED_STEPS} steps in {listed}. They are counted as "
                "trained and change nothing: is the parameter used, and are both factors of a product zero?"
            )
        count = sum(p.numel() for p in self.parameters.values())
        return CheckResult("dead parameters", True, f"every reachable row of {count:,} trainable parameters moved")

    def _dead(self) -> dict[str, str]:
        dead = {name: missing for name in self.parameters if (missing := self._dead_rows(name))}
        return {name: rows for name, rows in dead.items() if self.deep == WATCHED_STEPS or not self._may(name)}

    def _may_wake(self) -> bool:
        """Whether a deeper step may move all that no step has moved so far, and there is any."""
        dead = [name for name in self.parameters if self._dead_rows(name)]
        return bool(dead) and all(self._may(name) for name in dead)

    def _may(self, name: str) -> bool:
        return self.exits or name in self.alive

    def _dead_rows(self, name: str) -> str:
        parameter = self.parameters[name]
        rows = len(parameter) if parameter.ndim else 1
        if name not in self.alive:
            return "all rows"
        reachable = sorted(self.read.get(id(parameter), range(rows)))
        dead = int((~self.alive[name][reachable]).sum())
        return f"{dead} of {len(reachable)} rows" if dead else ""

    def _note_tokens(self, embedding: nn.Embedding, args: tuple[Tensor], rows: Tensor) -> None:
        if torch.is_grad_enabled():
            self.read[id(embedding.weight)].update(args[0].unique().tolist())

    def _note_row(self, table: TurnTable, args: tuple[int], row: Tensor) -> None:
        if torch.is_grad_enabled():
            weight, read = id(table.weight), table.row(*args)
            if self.first.setdefault((weight, read), self.steps) < self.steps:
                self.read[weight].add(read)
