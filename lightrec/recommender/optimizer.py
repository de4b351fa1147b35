"""How a model is trained: which parameters, by which rule, at which rate. Two optimizers, and the place for others."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lightrec.configurable import Above, AtLeast, Between, Configurable

Decay = Literal["constant", "linear", "cosine"]


class Optimizer(Configurable, ABC):
    """Settings of training. It holds no state, so that one object may serve any number of models."""

    @abstractmethod
    def configure(self, model: nn.Module, last_step: Callable[[], float]) -> Any:
        """Returns what Lightning's `configure_optimizers` returns.

        Args:
            model: whose parameters are trained; those without `requires_grad` are frozen.
            last_step: number of steps of the run, asked for while training; infinite if nothing bounds it.
        """


class AdamW(Optimizer):
    """Adam with decoupled weight decay, warm-up, and a falling rate.

    Args:
        learning_rate: peak learning rate.
        weight_decay: decoupled weight decay of matrices; biases and norms have none.
        betas: decay rates of the two moments.
        eps: added to the root of the second moment.
        warmup_steps: steps over which the rate rises from 0.
        decay: how the rate falls from its peak to 0 at the last step of the run.
    """

    limits = {
        "learning_rate": AtLeast(0),
        "weight_decay": AtLeast(0),
        "eps": Above(0),
        "warmup_steps": AtLeast(0),
    }

    def __init__(
        self,
        learning_rate: float = 1e-3,
        weight_decay: float = 0.0,
        betas: tuple[float, float] = (0.9, 0.98),
        eps: float = 1e-8,
        warmup_steps: int = 0,
        decay: Decay = "constant",
    ):
        self.learning_rate, self.weight_decay = learning_rate, weight_decay
        self.betas, self.eps = (float(betas[0]), float(betas[1])), eps
        self.warmup_steps, self.decay = warmup_steps, decay

    def groups(self, model: nn.Module) -> list[dict]:
        """Returns the parameter groups: matrices with weight decay, biases and norms without."""
        params = [p for p in model.parameters() if p.requires_grad]
        groups = [
            {"params": [p for p in params if p.dim() > 1], "weight_decay": self.weight_decay},
            {"params": [p for p in params if p.dim() <= 1], "weight_decay": 0.0},
        ]
        return [group for group in groups if group["params"]]

    def configure(self, model: nn.Module, last_step: Callable[[], float]) -> Any:
        optimizer = torch.optim.AdamW(
            self.groups(model), lr=self.learning_rate, betas=self.betas, eps=self.eps, fused=True
        )
        if not self.warmup_steps and self.decay == "constant":
            return optimizer
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: self.rate_at(step, last_step))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def rate_at(self, step: int, last_step: Callable[[], float]) -> float:
        """Returns the rate at a step as a share of the peak.

        Raises:
            ValueError: the rate is to fall and nothing bounds the run.
        """
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        if self.decay == "constant":
            return 1.0
        last = last_step()
        if last == math.inf:
            raise ValueError(f"decay={self.decay!r} needs a last step: set trainer.max_epochs or trainer.max_steps.")
        done = min(1.0, (step - self.warmup_steps) / max(1, last - self.warmup_steps))
        if self.decay == "linear":
            return 1.0 - done
        return 0.5 * (1.0 + torch.cos(torch.tensor(torch.pi * done)).item())


class Adagrad(Optimizer):
    """Adagrad with momentum, by the rule of the official GRU4Rec code.

    Args:
        learning_rate: learning rate.
        momentum: share of the last update that is made again, below 1.
        eps: added to the sum of squares, under the root.
    """

    limits = {"learning_rate": AtLeast(0), "momentum": Between(0, 1), "eps": Above(0)}

    def __init__(self, learning_rate: float = 0.1, momentum: float = 0.0, eps: float = 1e-6):
        if momentum == 1:
            raise ValueError(f"momentum ({momentum}) must be below 1.")
        self.learning_rate, self.momentum, self.eps = learning_rate, momentum, eps

    def configure(self, model: nn.Module, last_step: Callable[[], float]) -> torch.optim.Optimizer:
        params = [p for p in model.parameters() if p.requires_grad]
        return AdagradMomentum(params, self.learning_rate, self.momentum, self.eps)


class AdagradMomentum(torch.optim.Optimizer):
    """Adagrad whose updates have momentum; rows of matrices without gradient stand still, as in sparse updates.

    Args:
        params: what is trained.
        lr: learning rate.
        momentum: share of the last update that is made again.
        eps: added to the sum of squares, under the root.
    """

    def __init__(self, params: Iterable[nn.Parameter], lr: float = 0.1, momentum: float = 0.0, eps: float = 1e-6):
        super().__init__(params, {"lr": lr, "momentum": momentum, "eps": eps})

    @torch.no_grad()
    def step(self, closure=None):
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self._update(p, group["lr"], group["momentum"], group["eps"])
        return loss

    def _update(self, p: Tensor, lr: float, momentum: float, eps: float) -> None:
        kept = self.state[p]
        if not kept:
            kept["squares"] = torch.zeros_like(p)
            if momentum:
                kept["update"] = torch.zeros_like(p)
        # a step touches the candidates only, and a catalog has many more
        rows = p.grad.abs().amax(1).nonzero().squeeze(1) if p.dim() > 1 else slice(None)
        grad = p.grad[rows]
        kept["squares"][rows] += grad.square()
        update = grad * (-lr) / (kept["squares"][rows] + eps).sqrt()
        if momentum:
            update += momentum * kept["update"][rows]
            kept["update"][rows] = update
        p[rows] += update
