"""Times of steps of K-FAC for PyTorch, for `tools.step_benchmark --peer`.

Run by an interpreter that has torch and kfac-pytorch (KAISA), and nothing else
of this project: `python tools/torch_peer.py SETTINGS`, in JSON. It prints the
seconds of the steps of both sides, taken in turn, as a line of JSON.
"""

import json
import sys
import time

import torch
from kfac.preconditioner import KFACPreconditioner
from torch import nn
from torch.nn import functional


class Block(nn.Module):
    """Two convolutions and a shortcut without weights (He et al. 2016)."""

    def __init__(self, c_in: int, c_out: int):
        super().__init__()
        self.stride = c_out // c_in
        self.more = c_out - c_in
        self.first = _convolution(c_in, c_out, self.stride)
        self.first_norm = nn.BatchNorm2d(c_out)
        self.second = _convolution(c_out, c_out, 1)
        self.second_norm = nn.BatchNorm2d(c_out)

    def forward(self, x):
        y = functional.relu(self.first_norm(self.first(x)))
        y = self.second_norm(self.second(y))
        if self.more:
            x = x[:, :, :: self.stride, :: self.stride]
            x = functional.pad(x, (0, 0, 0, 0, self.more // 2, self.more // 2))
        return functional.relu(x + y)


def _convolution(c_in, c_out, stride):
    return nn.Conv2d(c_in, c_out, 3, stride=stride, padding=1, bias=False)


def resnet20() -> nn.Module:
    """Returns ResNet-20 for images of CIFAR's size."""
    widths = [16] * 4 + [32] * 3 + [64] * 3
    blocks = [Block(a, b) for a, b in zip(widths, widths[1:])]
    return nn.Sequential(
        _convolution(3, 16, 1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        *blocks,
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(64, 10),
    )


def make_step(settings: dict, with_kfac: bool, x, y):
    """Returns a function that takes one step."""
    torch.manual_seed(0)
    model = resnet20()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    preconditioner = None
    if with_kfac:
        preconditioner = KFACPreconditioner(
            model,
            factor_update_steps=settings["factor_update_period"],
            inv_update_steps=settings["inverse_update_period"],
            lr=1e-3,
        )

    def step():
        optimizer.zero_grad()
        functional.cross_entropy(model(x), y).backward()
        if preconditioner is not None:
            preconditioner.step()
        optimizer.step()

    return step


def main(settings: dict) -> None:
    if settings["threads"]:
        torch.set_num_threads(settings["threads"])
    x = torch.randn(settings["batch_size"], 3, 32, 32)
    y = torch.randint(10, [settings["batch_size"]])
    steps = {
        "baseline": make_step(settings, False, x, y),
        "kfac": make_step(settings, True, x, y),
    }
    times = {side: [] for side in steps}
    for step in steps.values():
        for _ in range(settings["warm_up"]):
            step()
    for start in range(0, settings["steps"], settings["turn"]):
        for side, step in steps.items():
            for _ in range(min(settings["turn"], settings["steps"] - start)):
                begin = time.perf_counter()
                step()
                times[side].append(time.perf_counter() - begin)
    print(json.dumps(times))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
