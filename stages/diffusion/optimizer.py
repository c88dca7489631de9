"""AdamW over torch's fused kernel, without torch.optim: that imports the compiler, 2 s in every training process."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

EPS = 1e-8


class AdamW:
    """AdamW (Loshchilov & Hutter 2019) with eps 1e-8, to the bit what torch.optim.AdamW(fused=True) computes.

    It keeps the part of the optimizer protocol that training and checkpoints use: `param_groups`, `step`, `zero_grad`,
    `state_dict`, `load_state_dict`.

    Args:
        parameters: float32 leaves, all on one device; every one must have a gradient when `step` is called.
        lr: learning rate; afterwards param_groups[0]["lr"].
        betas: decay of the first and of the second moment.
        weight_decay: decoupled from the gradient.
    """

    def __init__(
        self, parameters: Iterable[Tensor], *, lr: float, betas: tuple[float, float], weight_decay: float
    ) -> None:
        params = list(parameters)
        self.param_groups: list[dict[str, Any]] = [
            {"params": params, "lr": lr, "betas": tuple(betas), "weight_decay": weight_decay}
        ]
        self._means = [torch.zeros_like(p) for p in params]  # strides as the parameter's: the kernel walks memory
        self._squares = [torch.zeros_like(p) for p in params]
        self._steps = [torch.zeros((), device=p.device) for p in params]

    @torch.no_grad()
    def step(self) -> None:
        """One update from the parameters' gradients."""
        group = self.param_groups[0]
        params, (beta1, beta2) = group["params"], group["betas"]
        torch._foreach_add_(self._steps, 1)
        torch._fused_adamw_(
            params,
            [p.grad for p in params],
            self._means,
            self._squares,
            [],
            self._steps,
            lr=group["lr"],
            beta1=beta1,
            beta2=beta2,
            weight_decay=group["weight_decay"],
            eps=EPS,
            amsgrad=False,
            maximize=False,
        )

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop the gradients, or set them to zero."""
        for parameter in self.param_groups[0]["params"]:
            if set_to_none:
                parameter.grad = None
            elif parameter.grad is not None:
                parameter.grad.zero_()

    def state_dict(self) -> dict[str, Any]:
        """{"state": {index of the parameter: {"step", "exp_avg", "exp_avg_sq"}}}, as torch.optim names them."""
        slots = enumerate(zip(self._steps, self._means, self._squares))
        return {"state": {i: {"step": n, "exp_avg": m, "exp_avg_sq": v} for i, (n, m, v) in slots}}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` gave. Raises KeyError for a missing slot, ValueError for another shape."""
        for i, own in self.state_dict()["state"].items():
            for name, tensor in own.items():
                saved = state["state"][i][name]
                if saved.shape != tensor.shape:
                    raise ValueError(
                        f"{name} of parameter {i} has shape {tuple(saved.shape)}, not {tuple(tensor.shape)}"
                    )
                tensor.copy_(saved)
