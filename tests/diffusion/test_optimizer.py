"""AdamW against torch.optim's, to the bit, and without importing the compiler."""

import subprocess
import sys

import pytest
import torch

from stages.diffusion.optimizer import AdamW

SHAPES = [(7,), (4, 3, 3, 3), (5, 2)]
SETTINGS = {"betas": (0.8, 0.95), "weight_decay": 0.02}


def leaves():
    generator = torch.Generator().manual_seed(0)
    made = [torch.randn(shape, generator=generator) for shape in SHAPES]
    made[1] = made[1].contiguous(memory_format=torch.channels_last)
    return [p.requires_grad_() for p in made]


def descend(optimizer, params, steps, start=0):
    for step in range(start, start + steps):
        optimizer.param_groups[0]["lr"] = 0.1 / (1 + step)
        sum(((p - step) ** 2 * (1 + p)).sum() for p in params).backward()
        optimizer.step()
        optimizer.zero_grad()


def test_ten_steps_equal_torchs_own_to_the_bit():
    ours, theirs = leaves(), leaves()
    descend(AdamW(ours, lr=1.0, **SETTINGS), ours, 10)
    descend(torch.optim.AdamW(theirs, lr=1.0, eps=1e-8, fused=True, **SETTINGS), theirs, 10)
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs))
    assert not torch.equal(ours[0], leaves()[0])


def test_one_step_is_its_formula():
    """theta <- theta (1 - lr wd) - lr (m/(1-b1)) / (sqrt(v/(1-b2)) + eps) = theta (1 - lr wd) - lr sign(g) at first."""
    parameter = torch.tensor([2.0, -3.0], requires_grad=True)
    optimizer = AdamW([parameter], lr=0.1, **SETTINGS)
    (parameter * torch.tensor([5.0, -0.5])).sum().backward()
    optimizer.step()
    wanted = torch.tensor([2 * (1 - 0.002) - 0.1, -3 * (1 - 0.002) + 0.1])
    torch.testing.assert_close(parameter.detach(), wanted)


def test_a_restored_state_goes_on_to_the_bit():
    whole, broken = leaves(), leaves()
    descend(AdamW(whole, lr=1.0, **SETTINGS), whole, 6)
    first = AdamW(broken, lr=1.0, **SETTINGS)
    descend(first, broken, 3)
    second = AdamW(broken, lr=1.0, **SETTINGS)
    second.load_state_dict(first.state_dict())
    descend(second, broken, 3, start=3)
    assert all(torch.equal(a, b) for a, b in zip(whole, broken))


def test_a_state_of_other_parameters_is_refused():
    state = AdamW(leaves(), lr=1.0, **SETTINGS).state_dict()
    with pytest.raises(ValueError, match=r"exp_avg of parameter 0 has shape \(7,\), not \(5,\)"):
        AdamW([torch.zeros(5, requires_grad=True)], lr=1.0, **SETTINGS).load_state_dict(state)
    with pytest.raises(KeyError):
        AdamW([*leaves(), torch.zeros(1, requires_grad=True)], lr=1.0, **SETTINGS).load_state_dict(state)


def test_training_does_not_import_the_compiler():
    """torch._dynamo takes 2 s to import, in every training process."""
    code = (
        "import sys, torch\n"
        "import stages.diffusion.training, stages.diffusion.sampling\n"
        "from stages.diffusion.optimizer import AdamW\n"
        "p = torch.ones(3, requires_grad=True); o = AdamW([p], lr=1.0, betas=(0.9, 0.99), weight_decay=0.0)\n"
        "p.sum().backward(); torch.nn.utils.clip_grad_norm_([p], 1.0); o.step(); o.zero_grad()\n"
        "o.load_state_dict(o.state_dict())\n"
        "sys.exit('torch._dynamo' in sys.modules)\n"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
