"""Gaussian: sampling, density, divergence; torch.distributions is the independent reference."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.distributions import Normal
from torch.distributions import kl_divergence as torch_kl

from resshift_core import Gaussian, kl_divergence


def _pair() -> tuple[Gaussian, Gaussian]:
    rng = np.random.default_rng(0)
    first = Gaussian(rng.normal(size=(3, 2, 4)), rng.uniform(0.1, 2, size=(3, 1, 1)))
    return first, Gaussian(rng.normal(size=(3, 2, 4)), rng.uniform(0.1, 2, size=(3, 2, 4)))


def _torch(gaussian: Gaussian) -> Normal:
    mean, variance = np.broadcast_arrays(gaussian.mean, gaussian.variance)
    return Normal(torch.tensor(mean), torch.tensor(variance).sqrt())


def test_sample_is_an_affine_function_of_the_noise() -> None:
    gaussian = Gaussian(np.full((2, 3), 5.0), np.array([[4.0], [0.0]]))
    noise = np.arange(6.0).reshape(2, 3)
    np.testing.assert_array_equal(gaussian.sample(noise), [[5.0, 7.0, 9.0], [5.0, 5.0, 5.0]])


def test_log_prob_sums_over_all_but_the_batch() -> None:
    gaussian, _ = _pair()
    x = np.random.default_rng(1).normal(size=(3, 2, 4))
    expected = _torch(gaussian).log_prob(torch.tensor(x)).sum((1, 2)).numpy()
    np.testing.assert_allclose(gaussian.log_prob(x), expected, rtol=1e-12)


def test_kl_divergence_per_sample() -> None:
    p, q = _pair()
    expected = torch_kl(_torch(p), _torch(q)).sum((1, 2)).numpy()
    np.testing.assert_allclose(kl_divergence(p, q), expected, rtol=1e-12)
    # A shared variance that broadcasts counts once for every element.
    narrow = Gaussian(p.mean, p.variance * 2)
    expected = torch_kl(_torch(p), _torch(narrow)).sum((1, 2)).numpy()
    np.testing.assert_allclose(kl_divergence(p, narrow), expected, rtol=1e-12)


def test_batch_without_further_dimensions() -> None:
    p = Gaussian(torch.tensor([0.0, 1.0]), torch.tensor([1.0]))
    q = Gaussian(torch.tensor([2.0, 1.0]), torch.tensor([1.0]))
    assert kl_divergence(p, q).tolist() == [2.0, 0.0]
    assert p.log_prob(p.mean).shape == (2,)


@pytest.mark.parametrize("variance", [np.ones((2, 2)), np.ones(2), np.ones((4, 2, 3))])
def test_variance_that_does_not_broadcast_is_refused(variance: np.ndarray) -> None:
    with pytest.raises(ValueError, match="variance"):
        Gaussian(np.zeros((2, 3)), variance)


def test_other_shapes_are_refused() -> None:
    gaussian = Gaussian(np.zeros((2, 3)), np.ones((2, 1)))
    with pytest.raises(ValueError, match="noise"):
        gaussian.sample(np.zeros((1, 3)))
    with pytest.raises(ValueError, match="expected x of the shape"):
        gaussian.log_prob(np.zeros((2, 1)))
    with pytest.raises(ValueError, match="q_mean"):
        kl_divergence(gaussian, Gaussian(np.zeros((1, 3)), np.ones((1, 1))))
    with pytest.raises(ValueError, match="batch dimension"):
        Gaussian(np.array(0.0), np.array(1.0)).log_prob(np.array(0.0))
