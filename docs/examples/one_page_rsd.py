"""Residual Shifting Distillation (RSD) on one page: a teacher of 15 steps becomes a student of one step.

To be read beside the paper: one equation is one function, with its number in the docstring. The "images" are points of
the plane. x_0 lies near one of four points of a circle; y_0, its "low-resolution image", keeps a blurred first
coordinate and no second one. So x_0 may be at two places or more, and their mean, the least squares answer, is none.
Run it by `python one_page_rsd.py --out one-page-rsd.png`; docs/one-page-rsd.md shows what comes out.
"""

import argparse
import copy
import math
from collections.abc import Iterator, Sequence
from functools import partial

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn.functional import one_hot

T, KAPPA = 15, 1.0  # kappa: about the residual |y_0 - x_0| that the noise has to cover; published: 2, for latents
# The published schedule: the roots of eta_1 .. eta_T run geometrically from sqrt(0.001) to 0.99; eta_0 = 0 (Sec. 3.1).
FIRST, LAST, U = math.sqrt(0.001), 0.99, torch.linspace(0, 1, T, dtype=torch.float64) ** 0.3
ETA = torch.cat((torch.zeros(1), (FIRST ** (1 - U) * LAST**U) ** 2)).float()
FAKE_UPDATES, BATCH, BETAS = 5, 512, (0.9, 0.95)  # K = 5
LR, EMA = 1e-3, 0.99  # published: 5e-5 and 0.999, for large networks and 3000 updates
AdamW = partial(torch.optim.AdamW, lr=LR, betas=BETAS, weight_decay=0.0)
SPREAD, BLUR = 0.15, 0.5  # standard deviations: of x_0 around its centre, of y_0's error
ANGLES = (torch.arange(4) + 0.5) * math.pi / 2
CENTRES = 1.5 * torch.stack((ANGLES.cos(), ANGLES.sin()), 1)


def normal(count: int, width: int, rng: torch.Generator) -> Tensor:
    """N(0, I), (count, width)."""
    return torch.randn(count, width, generator=rng)


def sample_pairs(count: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw (x_0, y_0) from p_data, each (count, 2)."""
    x_0 = CENTRES[torch.randint(len(CENTRES), (count,), generator=rng)] + SPREAD * normal(count, 2, rng)
    return x_0, torch.cat((x_0[:, :1] + BLUR * normal(count, 1, rng), torch.zeros(count, 1)), 1)


def marginal(x_0: Tensor, y_0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
    """x_t ~ q(x_t | x_0, y_0) = N(x_0 + eta_t (y_0 - x_0), kappa^2 eta_t I) (Eq. 20): from x_0 to y_0 and noise."""
    eta = ETA[t, None]
    return x_0 + eta * (y_0 - x_0) + KAPPA * eta.sqrt() * noise


def posterior(x_t: Tensor, x_0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
    """x_{t-1} ~ q(x_{t-1} | x_t, x_0, y_0) (Eq. 2): one step back, given x_0."""
    eta, previous = ETA[t, None], ETA[t - 1, None]
    alpha = eta - previous
    return previous / eta * x_t + alpha / eta * x_0 + KAPPA * (previous / eta * alpha).sqrt() * noise


class Network(nn.Module):
    """f(x_t, y_0, t), which predicts x_0; with one number of noise eps also the student G(x_t, y_0, t, eps)."""

    def __init__(self, rng: torch.Generator, width: int = 160) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *(nn.Linear(2 + 2 + T + 1, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU()),
            *(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 2)),
        )
        for layer in self.layers[::2]:
            nn.init.kaiming_uniform_(layer.weight, a=math.sqrt(5), generator=rng)
            nn.init.zeros_(layer.bias)
        nn.init.zeros_(self.layers[0].weight[:, -1])  # of eps: a copy of the teacher starts as the teacher

    def forward(self, x_t: Tensor, y_0: Tensor, t: Tensor, eps: Tensor | None = None) -> Tensor:
        """Predict x_0, (B, 2), at times t in 1..T, (B,)."""
        given = (x_t, y_0, one_hot(t - 1, T), torch.zeros(len(t), 1) if eps is None else eps)
        return self.layers(torch.cat(given, 1))


def regression_loss(prediction: Tensor, x_0: Tensor) -> Tensor:
    """Train a ResShift model of x_0 (Eq. 5, w_t = 1): the teacher of data, the fake model of the student's output."""
    return (prediction - x_0).square().mean()


def rsd_loss(f_teacher: Tensor, f_fake: Tensor, x_0_hat: Tensor) -> Tensor:
    """||f*||^2 - ||f_phi||^2 + 2 <f_phi - f*, x_0_hat> (Eq. 7), (B,); E ||f_phi - f*||^2 (Eq. 6) for the best f_phi."""
    return (f_teacher.square() - f_fake.square() + 2 * (f_fake - f_teacher) * x_0_hat).mean(1)


def descend(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    """Take one gradient step."""
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def train_teacher(steps: int, rng: torch.Generator) -> Network:
    """Train f* on the data (Eq. 5)."""
    teacher = Network(rng)
    optimizer = AdamW(teacher.parameters(), lr=2 * LR)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        x_0, y_0 = sample_pairs(BATCH, rng)
        t = torch.randint(1, T + 1, (BATCH,), generator=rng)
        descend(optimizer, regression_loss(teacher(marginal(x_0, y_0, t, normal(BATCH, 2, rng)), y_0, t), x_0))
        decay.step()
    return teacher.requires_grad_(False)


def sample_everything(student: Network, times: Sequence[int], rng: torch.Generator) -> tuple[Tensor, ...]:
    """Return the student's output x_0_hat, y_0, a time t, and x_0_hat noised to t (Algorithm 1, lines 1-15)."""
    x_0, y_0 = sample_pairs(BATCH, rng)
    t_n = torch.tensor(times)[torch.randint(len(times), (BATCH,), generator=rng)]
    x_0_hat = student(marginal(x_0, y_0, t_n, normal(BATCH, 2, rng)), y_0, t_n, normal(BATCH, 1, rng))
    t = torch.randint(1, T + 1, (BATCH,), generator=rng)
    return x_0_hat, y_0, t, marginal(x_0_hat, y_0, t, normal(BATCH, 2, rng))


def distil(teacher: Network, steps: int, times: Sequence[int], rng: torch.Generator) -> Iterator[Network]:
    """Train the student and the fake model in turns; yield the student's moving average at each step (Algorithm 1)."""
    student, fake = (copy.deepcopy(teacher).requires_grad_(True) for _ in range(2))
    average = copy.deepcopy(teacher)
    student_optimizer, fake_optimizer = AdamW(student.parameters()), AdamW(fake.parameters())
    for _ in range(steps):
        for _ in range(FAKE_UPDATES):
            with torch.no_grad():
                x_0_hat, y_0, t, x_t = sample_everything(student, times, rng)
            descend(fake_optimizer, regression_loss(fake(x_t, y_0, t), x_0_hat))
        x_0_hat, y_0, t, x_t = sample_everything(student, times, rng)
        f_teacher, f_fake = teacher(x_t, y_0, t), fake(x_t, y_0, t)  # gradients run through both, to x_t and G
        scale = (f_teacher - x_0_hat).abs().mean(1).detach() + 1e-8  # of each sample's loss (Appendix C)
        descend(student_optimizer, (rsd_loss(f_teacher, f_fake, x_0_hat) / scale).mean())
        for kept, new in zip(average.parameters(), student.parameters(), strict=True):
            kept.lerp_(new.detach(), 1 - EMA)
        yield average


@torch.no_grad()
def sample(network: Network, y_0: Tensor, calls: int, rng: torch.Generator) -> Tensor:
    """Walk from x_T ~ N(y_0, kappa^2 eta_T I) towards x_0 (Eq. 3, 4); after the given network calls take its x_0."""
    x_t = y_0 + KAPPA * ETA[T].sqrt() * normal(len(y_0), 2, rng)
    for step in range(T, T - calls, -1):
        t = torch.full((len(y_0),), step)
        x_0 = network(x_t, y_0, t, normal(len(y_0), 1, rng))  # the teacher ignores eps
        x_t = posterior(x_t, x_0, t, normal(len(y_0), 2, rng))
    return x_0


def energy_distance(a: Tensor, b: Tensor) -> float:
    """Return 2 E|a - b| - E|a - a'| - E|b - b'|: 0 for equal distributions, unbiased."""
    inner = [torch.cdist(p, p).sum() / (len(p) * (len(p) - 1)) for p in (a, b)]
    return (2 * torch.cdist(a, b).mean() - inner[0] - inner[1]).item()


def draw(path: str, panels: dict[str, Tensor], y_0: Tensor, curve: list[tuple[int, float]], **levels: float) -> None:
    """Draw the points of each panel, coloured by y_0, and the student's energy distance over its updates."""
    figure = Figure(figsize=(10.5, 7.2), layout="constrained")
    *axes, last = figure.subplots(2, 3).flatten()
    for axis, (title, x) in zip(axes, panels.items(), strict=True):
        axis.scatter(*x.T, c=y_0[:, 0], cmap="viridis", vmin=-2, vmax=2, s=5, linewidths=0)
        axis.set(title=title, xlim=(-2.3, 2.3), ylim=(-2.3, 2.3), aspect="equal", xticks=(-2, 0, 2), yticks=(-2, 0, 2))
    first_pairs = torch.stack([panels[axis.get_title()][:60] for axis in axes[:2]])
    axes[1].plot(*first_pairs.permute(2, 0, 1), color="grey", linewidth=0.5)
    last.plot(*zip(*curve, strict=True), label="student, 1 step")
    for number, (name, level) in enumerate(levels.items(), 1):
        last.axhline(level, color=f"C{number}", linestyle="--", label=name)
    last.set(title="energy distance to the data", yscale="log", xlabel="update of the student", box_aspect=1)
    last.legend(fontsize=8)
    figure.savefig(path, dpi=90)


def main() -> None:
    """Train the teacher, distil it, measure both, draw."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--steps", type=int, default=600, help="student updates; four times as many of the teacher")
    options.add_argument("--times", type=int, nargs="+", default=[T], help="the student's t_1 .. t_N = T")
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--out", default="one-page-rsd.png")
    chosen = options.parse_args()
    torch.set_num_threads(1)  # more only slow networks of this size down
    rng, eval_rng = (torch.Generator().manual_seed(2 * chosen.seed + i) for i in range(2))
    (x_0, y_0), true = sample_pairs(4000, eval_rng), torch.cat(sample_pairs(4000, eval_rng), 1)
    panels = {}

    def measure(name: str, x: Tensor) -> float:
        distance, stray = energy_distance(torch.cat((x, y_0), 1), true), torch.cdist(x, CENTRES).amin(1) > 4 * SPREAD
        print(f"{name:17} energy distance {distance:7.4f}   between the modes {stray.float().mean():6.1%}", flush=True)
        panels[name] = x
        return distance

    measure("x_0", x_0)
    panels["y_0, and its way to x_0"] = y_0
    teacher, curve = train_teacher(4 * chosen.steps, rng), []
    many = measure("teacher, 15 steps", sample(teacher, y_0, T, eval_rng))
    once = measure("teacher, 1 step", sample(teacher, y_0, 1, eval_rng))
    for step, student in enumerate(distil(teacher, chosen.steps, chosen.times, rng), 1):
        if step % max(1, chosen.steps // 20) == 0:
            curve.append((step, measure("student, 1 step", sample(student, y_0, 1, eval_rng))))
    draw(chosen.out, panels, y_0, curve, **{"teacher, 15 steps": many, "teacher, 1 step": once})


if __name__ == "__main__":
    main()
