"""Networks: unit features of pictures of any kind, for all architectures."""

import pytest
import torch

from nnlib.training import Embedding
from nnlib.training.encoders import ARCHITECTURES


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("arch", [name for name in ARCHITECTURES if name != "resnet34"])
def test_unit_features(arch, channels):
    network = Embedding(arch, 8, channels, 16).eval()
    images = torch.randint(0, 256, (3, channels, 16, 16), dtype=torch.uint8)
    with torch.no_grad():
        features, same = network(images), network(images.float() / 255)
        assert features.shape == (3, 8) and torch.allclose(
            features.norm(dim=1), torch.ones(3), atol=1e-6
        )
        assert torch.equal(features, same)
        assert network(images[:0]).shape == (0, 8)
        assert torch.allclose(network(images[1:2])[0], features[1], atol=1e-5)


@pytest.mark.parametrize("size", [8, 28, 33])
def test_small_pictures_of_other_sizes(size):
    network = Embedding("small", 8, 1, size)
    features = network(torch.rand(2, 1, size, size))
    features[:, 0].sum().backward()
    assert all(
        weight.grad is not None and weight.grad.isfinite().all() for weight in network.parameters()
    )


def test_a_stem_for_the_size():
    small, large = (Embedding("resnet18", 8, 3, size).backbone for size in (96, 97))
    assert small.conv1.stride == (1, 1) and isinstance(small.maxpool, torch.nn.Identity)
    assert large.conv1.stride == (2, 2) and large.conv1.weight.shape[2:] == (7, 7)
    assert Embedding("resnet18", 8, 1, 97).backbone.conv1.weight.shape == (64, 1, 7, 7)


@pytest.mark.parametrize(
    ("given", "word"),
    [
        ({"arch": "alexnet"}, "arch='alexnet' is not known: give one of small"),
        ({"arch": "small", "low_dim": 0}, "low_dim=0"),
        ({"arch": "small", "pretrained": True}, "pretrained"),
    ],
)
def test_what_is_not_known_is_named(given, word):
    with pytest.raises(ValueError, match=word):
        Embedding(**given)
