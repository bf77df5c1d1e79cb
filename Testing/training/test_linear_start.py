from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from MAISILib.anatomy.labels import default_table
from MAISILib.bundles.networks import build_network
from MAISILib.errors import TrainingError
from MAISILib.resources import resource
from MAISILib.training.datalist import DataItem
from MAISILib.training.images import ImageDataset, ImageSettings
from MAISILib.training.linear_start import LinearCode, measure_code, start_as_linear_code

SETTINGS = ImageSettings(random_aug=False, patch_size=(32, 32, 32))


@pytest.fixture
def definition() -> dict[str, Any]:
    """The layout of the embedded bundle's autoencoder."""
    return json.loads(resource("recipes", "head-neck-mini", "autoencoder.json").read_text(encoding="utf-8"))[
        "definition"
    ]


@pytest.fixture
def dataset(patients: Path) -> ImageDataset:
    items = [DataItem(f"pt_{n}", patients / f"pt_{n}_ct.nii.gz", patients / f"pt_{n}_seg.nii.gz") for n in (1, 2, 10)]
    return ImageDataset(items, SETTINGS, default_table(), training=False)


@pytest.fixture
def code(dataset: ImageDataset) -> LinearCode:
    return measure_code(dataset, 6)


def started(definition: dict[str, Any], code: LinearCode, dataset: ImageDataset) -> Any:
    torch.manual_seed(1)
    network = build_network(definition)
    images = [dataset.load(i, random.Random(i)).image[None] for i in range(2)]
    start_as_linear_code(network, code, images, -8.0)
    return network


def image_of(dataset: ImageDataset) -> torch.Tensor:
    return dataset.load(2, random.Random(0)).image[None]


def by_hand(code: LinearCode, image: np.ndarray) -> np.ndarray:
    """What a block code keeps of an image ``(X, Y, Z)``."""
    kept = image.copy()
    projection = code.components.T @ code.components
    for i in range(0, image.shape[0], 2):
        for j in range(0, image.shape[1], 2):
            for k in range(0, image.shape[2], 2):
                block = image[i : i + 2, j : j + 2, k : k + 2]
                kept[i : i + 2, j : j + 2, k : k + 2] = (projection @ block.ravel()).reshape(2, 2, 2)
    return kept


def test_components_are_orthonormal_and_the_first_is_the_mean_of_a_block(code: LinearCode) -> None:
    assert np.allclose(code.components @ code.components.T, np.eye(6), atol=1e-9)
    assert np.ptp(code.components[0]) < 0.1 * code.components[0].mean()
    assert code.gains[0] < code.gains[-1]


def test_autoencoder_begins_as_the_block_code(
    definition: dict[str, Any], code: LinearCode, dataset: ImageDataset
) -> None:
    network, image = started(definition, code, dataset), image_of(dataset)
    with torch.inference_mode():
        output = network.reconstruct(image)[0, 0].numpy()
    wanted = by_hand(code, image[0, 0].numpy())
    assert np.sqrt(((output - wanted) ** 2).mean()) < 0.01  # 20 HU


def test_intensities_do_not_depend_on_how_much_air_is_around(
    definition: dict[str, Any], code: LinearCode, dataset: ImageDataset
) -> None:
    network, image = started(definition, code, dataset), image_of(dataset)
    wide = torch.zeros(1, 1, 64, 64, 64)
    wide[..., :32, :32, :32] = image
    with torch.inference_mode():
        alone, beside = network.reconstruct(image)[0, 0], network.reconstruct(wide)[0, 0, :32, :32, :32]
    inside = image[0, 0] > 0.3
    assert abs(float((alone - beside)[inside].mean())) < 0.01


def test_the_residual_blocks_get_gradients(definition: dict[str, Any], code: LinearCode, dataset: ImageDataset) -> None:
    network = started(definition, code, dataset).train().requires_grad_(True)
    image = torch.rand(1, 1, 16, 16, 16)
    ((network.decode(network.encode(image)[0]) - image) ** 2).mean().backward()
    second = {name: p.grad for name, p in network.named_parameters() if "conv2" in name and name.endswith("weight")}
    assert len(second) == 4
    assert all(float(gradient.abs().max()) > 0 for gradient in second.values())


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"norm_num_groups": 8}, "norm_num_groups 1"),
        ({"use_convtranspose": False}, "transposed"),
        ({"latent_channels": 4}, "latent channels"),
    ],
)
def test_other_layouts_are_refused(
    definition: dict[str, Any], code: LinearCode, change: dict[str, Any], named: str
) -> None:
    with pytest.raises(TrainingError, match=named):
        start_as_linear_code(build_network({**definition, **change}), code, [], -8.0)
