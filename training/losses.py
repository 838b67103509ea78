"""What training minimises: one number per example, to be averaged last (imports torch only).

Pictures are (batch, channels, rows, cols), losses (batch,) float32. Errors are in the units of the normalised pictures.
Sources: DLSS-STEM (Ede 2019, arXiv:1910.10467), partial STEM (Ede and Beanland 2020, doi:10.1038/s41598-020-65261-0)
and adaptive learning rate clipping, ALRC (Ede and Beanland 2020, doi:10.1088/2632-2153/ab81e2).
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from lowdose.training.examples import blur_taps

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

PIXEL_WEIGHT = 200.0
"""Factor of the mean squared error of pictures in [-1, 1] (partial STEM)."""


class ALRC:
    """Adaptive learning rate clipping: no example pulls harder than three deviations above the mean.

    With the running moments mu1 of the losses and mu2 of their squares, before each update:
    L_max = mu1 + deviations sqrt(mu2 - mu1^2 + 1e-8); a loss L >= L_max becomes L / stop_gradient(L / L_max), of value
    L_max and with its gradient times L_max / L. Then mu <- decay mu + (1 - decay) batch mean of the clipped values.
    A loss that is not finite counts as L_max in the moments and comes out as it is, for the caller to notice.

    Parameters
    ----------
    mu1, mu2 : float
        First and second raw moment to begin with, mu1 >= 0 and mu2 > mu1^2. (Two papers print mu2 = 30 beside
        mu1 = 25, which no losses can have; 30^2 is meant.) Losses far below mu1 are not clipped for some
        thousand steps: begin near the losses expected.
    deviations : float
        Above the mean, where clipping sets in.
    decay : float
        Of both moments, per call.

    Raises
    ------
    ValueError
        If no losses can have these moments.

    Examples
    --------
    >>> alrc = ALRC()
    >>> alrc(torch.tensor([100.0])).tolist()
    [74.74937438964844]
    >>> round(alrc.mu1, 5), round(alrc.mu2, 5)
    (25.04975, 904.68747)
    """

    def __init__(self, mu1: float = 25.0, mu2: float = 900.0, *, deviations: float = 3.0, decay: float = 0.999) -> None:
        self.deviations = deviations
        self.decay = decay
        self._moments = torch.empty(0)
        self.load_state_dict({"mu1": mu1, "mu2": mu2})

    @property
    def mu1(self) -> float:
        """Running mean of the clipped losses."""
        return float(self._moments[0])

    @property
    def mu2(self) -> float:
        """Running mean of their squares."""
        return float(self._moments[1])

    def __call__(self, losses: Tensor) -> Tensor:
        """Return (batch,) losses clipped one by one; the moments follow.

        Parameters
        ----------
        losses : (batch,) Tensor
            Each >= 0.
        """
        # the moments live where the losses do: nothing waits for the device
        self._moments = self._moments.to(losses.device)
        mu1, mu2 = self._moments
        values = losses.detach().double()
        threshold = mu1 + self.deviations * torch.sqrt((mu2 - mu1.square()).clamp(min=0) + 1e-8)
        below = values < threshold
        clipped = torch.where(below, values, threshold)
        fresh = torch.stack([clipped.mean(), clipped.square().mean()])
        self._moments = self.decay * self._moments + (1 - self.decay) * fresh
        return losses * torch.where(below, 1.0, threshold / values).to(losses.dtype)

    def state_dict(self) -> dict[str, float]:
        """Return what a checkpoint keeps."""
        return {"mu1": self.mu1, "mu2": self.mu2}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Take up moments that `state_dict` returned.

        Raises
        ------
        ValueError
            If no losses can have these moments.
        """
        mu1, mu2 = state["mu1"], state["mu2"]
        if not (0 <= mu1 < math.inf and mu1**2 < mu2 < math.inf):
            raise ValueError(
                f"mu1 must be >= 0 and mu2, the mean square, greater than mu1^2 = {mu1**2:g}; "
                f"got mu1 = {mu1:g}, mu2 = {mu2:g}: use for example mu1 = 25, mu2 = 900"
            )
        self._moments = torch.tensor([mu1, mu2], dtype=torch.float64)


def huberised(losses: Tensor) -> Tensor:
    """Return L where L <= 1, else sqrt(L + 1e-8): only to repeat early runs, which did so after ALRC."""
    return torch.where(losses <= 1, losses, torch.sqrt(losses + 1e-8))


@lru_cache(maxsize=8)
def gaussian_taps(size: int, sigma: float) -> tuple[float, ...]:
    """Return the `size` taps exp(-x^2 / 2 sigma^2) / sum of a Gaussian cut off and normalised to 1.

    Examples
    --------
    >>> [round(tap, 4) for tap in gaussian_taps(3, 1.5)]
    [0.3078, 0.3844, 0.3078]
    """
    if size < 1 or size % 2 == 0 or sigma <= 0:
        raise ValueError(f"a kernel has an odd size and a sigma > 0, got size {size}, sigma {sigma}")
    return tuple(blur_taps(size // 2, sigma).tolist())


def gaussian_blur(images: Tensor, *, size: int = 5, sigma: float = 2.5) -> Tensor:
    """Blur pictures by a Gaussian cut off to `size` x `size`, mirrored at the edges (edge pixel not repeated).

    As the target of a loss it takes weight off the noise of single pixels, and detail with it (partial STEM: 5 x 5 with
    sigma 2.5; the one-stage network of DLSS-STEM: 3 x 3 with sigma 1.5).

    Parameters
    ----------
    images : (batch, channels, rows, cols) floating Tensor
        Each side longer than size // 2.
    size, sigma : int, float
        Of the kernel [pixel]; size odd.

    Returns
    -------
    (batch, channels, rows, cols) Tensor
        Differentiable.

    Raises
    ------
    ValueError
        If the pictures are too small or the kernel is none.
    """
    reach = size // 2
    if min(images.shape[-2:]) <= reach:
        raise ValueError(f"pictures must be larger than {reach} pixels each way, got {tuple(images.shape)}")
    taps = images.new_tensor(gaussian_taps(size, sigma))
    planes = images.reshape(-1, 1, *images.shape[-2:])
    planes = functional.conv2d(functional.pad(planes, (0, 0, reach, reach), mode="reflect"), taps.view(1, 1, -1, 1))
    planes = functional.conv2d(functional.pad(planes, (reach, reach, 0, 0), mode="reflect"), taps.view(1, 1, 1, -1))
    return planes.reshape(images.shape)


def mse(output: Tensor, target: Tensor) -> Tensor:
    """Return the (batch,) mean squared differences of two batches of equal shape, in float32."""
    if output.shape != target.shape:
        raise ValueError(f"output {tuple(output.shape)} and target {tuple(target.shape)} must have one shape")
    return (output.float() - target.float()).square().flatten(1).mean(dim=1)


def pixel_loss(output: Tensor, target: Tensor, *, p: Tensor | float = 1.0) -> Tensor:
    """Return 200 MSE(output, target) / p: the main and the auxiliary loss before ALRC.

    Parameters
    ----------
    output, target : (batch, 1, rows, cols) Tensor
        In [-1, 1]; the target of the main loss is blurred 5 x 5, that of the auxiliary one halved and then blurred so.
    p : (batch,) Tensor or float
        Error expected at the coverage of each example, relative to other coverages (`p_of_coverage`,
        `ExpectedErrors`); 1 when there is but one coverage.

    Returns
    -------
    (batch,) Tensor
    """
    return PIXEL_WEIGHT * mse(output, target) / p


def blurred_pixel_loss(output: Tensor, truth: Tensor, *, p: Tensor | float = 1.0) -> Tensor:
    """Return 200 MSE(blur(output), blur(truth)) / p, both 5 x 5 with sigma 2.5: the pixel term beside a discriminator.

    The blur leaves fine detail to the discriminators. (The DLSS-STEM text says 3 x 3 with sigma 1.5; no published run
    did that.)

    Parameters
    ----------
    output, truth : (batch, 1, rows, cols) Tensor
        In [-1, 1], neither blurred.
    p : (batch,) Tensor or float
        As of `pixel_loss`.
    """
    return pixel_loss(gaussian_blur(output), gaussian_blur(truth), p=p)


def relative_mse(output: Tensor, target: Tensor, linear: Tensor, *, floor: float = 1e-4) -> Tensor:
    """Return MSE(output, target) / max(MSE(linear, target), floor): 1 = no better than linear infill.

    Crops, coverages and patterns count alike however hard they are, without a table of expected errors.

    Parameters
    ----------
    output, target, linear : (batch, 1, rows, cols) Tensor
        Normalised alike; `linear` is the linear infill of the measured values.
    floor : float
        In squared units of the normalised pictures: keeps crops that linear infill completes well from
        counting more the better it does.

    Returns
    -------
    (batch,) Tensor
    """
    return mse(output, target) / mse(linear, target).clamp(min=floor)


def gaussian_nll(mean: Tensor, deviation: Tensor, target: Tensor, *, floor: float = 1e-3) -> Tensor:
    """Return the mean negative log-likelihood of pixels under normal distributions, >= 0.

    Per pixel (target - mean)^2 / 2v + log(v / floor^2) / 2 with v = deviation^2 + floor^2 (Nix and Weigend 1994,
    doi:10.1109/ICNN.1994.374138). The constant makes 0 the least there can be, as ALRC needs. The floor is added, not
    clamped to, so that a deviation far too small still learns to grow.

    Pixels of large deviation hardly pull on the mean (Seitzer et al. 2022, arXiv:2203.09168): train the mean by a
    squared error and give its `detach()` here.

    Parameters
    ----------
    mean, deviation, target : (batch, 1, rows, cols) Tensor
        Normalised alike; deviation >= 0. A network that puts out the logarithm passes its `exp()`.
    floor : float
        Smallest standard deviation believed, > 0.

    Returns
    -------
    (batch,) Tensor
    """
    if not mean.shape == deviation.shape == target.shape:
        raise ValueError(
            f"mean {tuple(mean.shape)}, deviation {tuple(deviation.shape)} and target {tuple(target.shape)} "
            "must have one shape"
        )
    variance = deviation.float().square() + floor**2
    squared_error = (target.float() - mean.float()).square()
    return 0.5 * (squared_error / variance + torch.log(variance / floor**2)).flatten(1).mean(dim=1)


NORMAL_90 = 1.645
"""Standard deviations within which 90 % of a normal distribution lie, to either side."""


def interval_loss(mean: Tensor, deviation: Tensor, target: Tensor, linear: Tensor, *, floor: float = 1e-4) -> Tensor:
    """Return how badly mean ± 1.645 deviations does as the interval in which 90 % of a target's pixels lie.

    Per pixel the quantile score of r = 1.645 deviation for e = |target - mean|, 0.9 (e - r) above and 0.1 (r - e) below
    (Gneiting and Raftery 2007, doi:10.1198/016214506000001437, section 6): least when 90 % of the errors are below r,
    whatever their distribution. Divided per crop by the RMS error of linear infill, so that crops count alike.

    Parameters
    ----------
    mean, deviation, target, linear : (batch, 1, rows, cols) Tensor
        Normalised alike; deviation >= 0. Give `mean.detach()` where another loss trains the mean.
    floor : float
        Of the linear infill's squared error.

    Returns
    -------
    (batch,) Tensor
    """
    excess = (target - mean).abs() - NORMAL_90 * deviation
    score = torch.maximum(0.9 * excess, -0.1 * excess).flatten(1).mean(dim=1)
    return score / mse(linear, target).clamp(min=floor).sqrt()


FITTED_COVERAGES = (1 / 100, 1 / 16)
"""Least and greatest coverage the polynomial of `p_of_coverage` was fitted to."""


def p_of_coverage(coverage: Tensor) -> Tensor:
    """Return the error expected on a lattice at some coverage, relative to the mean of the seven published ones.

    p(c) = q(c) / mean of q(1/s^2) over s = 4 .. 10, q(c) = 0.002211 - 0.037887 c + 0.289451 c^2 (DLSS-STEM: a fit of
    final training errors in [0, 1] units). Lattices of 1/100 to 1/16 only: other coverages take the nearer end's value,
    because the fit rises again from 1/15 on, and other patterns need `ExpectedErrors`.

    Parameters
    ----------
    coverage : (batch,) Tensor
        Nominal, 0 to 1.

    Examples
    --------
    >>> [round(p, 4) for p in p_of_coverage(torch.tensor([1 / 16, 1 / 100])).tolist()]
    [0.6547, 1.2513]
    """
    published = torch.tensor([1 / s**2 for s in range(4, 11)], dtype=torch.float64, device=coverage.device)
    scale = _fitted_error(published).mean()
    return (_fitted_error(coverage.double().clamp(*FITTED_COVERAGES)) / scale).float()


def _fitted_error(coverage: Tensor) -> Tensor:
    return 0.002211 - 0.037887 * coverage + 0.289451 * coverage.square()


class ExpectedErrors:
    """p learnt while training: a moving average of the error at each pattern and coverage (DLSS-STEM's proposal).

    p = average of its own group / mean of the averages of all groups seen so far; 1 for a group not seen yet. Until
    1 / (1 - decay) errors of a group are in, its average is their plain mean.

    Parameters
    ----------
    decay : float
        Of the averages, per example of the group.

    Examples
    --------
    >>> errors = ExpectedErrors()
    >>> errors.update(torch.tensor([0, 0]), torch.tensor([0.25, 0.0625]), torch.tensor([1.0, 3.0]))
    >>> errors.p(torch.tensor([0]), torch.tensor([0.0625])).tolist()
    [1.5]
    """

    LEAST_P = 0.01
    """A group completed without error must not get weight without end."""

    def __init__(self, *, decay: float = 0.999) -> None:
        self.decay = decay
        self._averages: dict[tuple[int, float], tuple[float, int]] = {}

    def p(self, pattern: Tensor, coverage: Tensor) -> Tensor:
        """Return (batch,) p of examples, on the device of `coverage`.

        Parameters
        ----------
        pattern, coverage : (batch,) integer Tensor, (batch,) Tensor
            Index of the pattern and nominal coverage of each.
        """
        mean = sum(average for average, _ in self._averages.values()) / max(len(self._averages), 1)
        own = [self._averages.get(group, (mean, 0))[0] for group in _groups(pattern, coverage)]
        relative = [max(average / mean, self.LEAST_P) if mean > 0 else 1.0 for average in own]
        return torch.tensor(relative, dtype=torch.float32, device=coverage.device)

    def update(self, pattern: Tensor, coverage: Tensor, errors: Tensor) -> None:
        """Take in (batch,) mean squared errors, not divided by p; those that are not finite are left out."""
        for group, error in zip(_groups(pattern, coverage), errors.detach().tolist(), strict=True):
            if math.isfinite(error):
                average, count = self._averages.get(group, (0.0, 0))
                share = max(1 - self.decay, 1 / (count + 1))
                self._averages[group] = (average + share * (error - average), count + 1)

    def state_dict(self) -> dict[str, list[tuple[int, float, float, int]]]:
        """Return what a checkpoint keeps: rows of pattern, coverage, average, count."""
        return {"groups": [(*group, *value) for group, value in self._averages.items()]}

    def load_state_dict(self, state: Mapping[str, Sequence[tuple[int, float, float, int]]]) -> None:
        """Take up what `state_dict` returned."""
        self._averages = {(pattern, coverage): (mean, n) for pattern, coverage, mean, n in state["groups"]}


def _groups(pattern: Tensor, coverage: Tensor) -> list[tuple[int, float]]:
    # 1/20 is not the same number in both precisions
    return list(zip(pattern.tolist(), coverage.float().tolist(), strict=True))
