"""Decoders: shapes for any image size, and which capsule they look at."""

import pytest
import torch

from caplet.nn.decoder import ConvDecoder, Decoder, DenseDecoder, longest

SIZES = [(1, 8, 8), (3, 32, 32), (1, 28, 28), (2, 5, 7), (3, 33, 17), (1, 1, 1)]


@pytest.fixture(params=["dense", "conv"])
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


def make(kind: str, image: tuple[int, int, int]) -> Decoder:
    torch.manual_seed(0)
    return DenseDecoder(4, 6, image, (16, 32)) if kind == "dense" else ConvDecoder(6, image)


def capsules(count: int = 3) -> torch.Tensor:
    return torch.rand(count, 4, 6, generator=torch.Generator().manual_seed(1)) / 6


@pytest.mark.parametrize("image", SIZES)
def test_shape_and_range(kind: str, image: tuple[int, int, int]) -> None:
    out = make(kind, image)(capsules(), torch.tensor([0, 3, 1]))
    assert out.shape == (3, *image)
    assert out.dtype == torch.float32
    assert bool(((out > 0) & (out < 1)).all())


def test_only_the_chosen_capsule_matters(kind: str) -> None:
    decoder, x, labels = make(kind, (1, 9, 9)), capsules(), torch.tensor([0, 3, 1])
    other = x.clone()
    for image, label in enumerate(labels):
        other[image, torch.arange(4) != label] = 0.7
    assert torch.equal(decoder(x, labels), decoder(other, labels))
    other[0, 0] += 0.1
    assert not torch.equal(decoder(x, labels)[0], decoder(other, labels)[0])


def test_without_labels_the_longest_capsule_is_taken(kind: str) -> None:
    decoder, x = make(kind, (1, 9, 9)), capsules()
    x[1, 2] *= 3
    assert longest(x)[1] == 2
    assert torch.equal(decoder(x), decoder(x, longest(x)))


def test_longest_takes_the_first_on_a_tie() -> None:
    assert longest(torch.ones(1, 4, 6)).tolist() == [0]


def test_the_convolutional_decoder_does_not_know_the_class() -> None:
    decoder, x = make("conv", (1, 9, 9)), capsules(1).expand(1, 4, 6)
    same = x[:, :1].expand(1, 4, 6)
    assert torch.equal(decoder(same, torch.tensor([0])), decoder(same, torch.tensor([3])))


def test_the_dense_decoder_does() -> None:
    decoder = make("dense", (1, 9, 9))
    same = capsules(1)[:, :1].expand(1, 4, 6)
    assert not torch.equal(decoder(same, torch.tensor([0])), decoder(same, torch.tensor([3])))
