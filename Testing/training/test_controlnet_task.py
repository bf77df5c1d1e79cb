from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch

from MAISILib.anatomy.labels import default_table
from MAISILib.bundles.networks import build_network
from MAISILib.diffusion.networks import predict
from MAISILib.diffusion.schedules import FlowSchedule
from MAISILib.errors import BundleError, TrainingError
from MAISILib.training.controlnet_task import ControlNetTask
from MAISILib.training.denoising import condition_inputs, make_schedule
from MAISILib.training.recipes import ControlNetRecipe
from MAISILib.training.task import Tensors
from Testing.tiny_bundle import BODY, LIVER, LUNG, LUNG_TUMOR, tiny_definitions, tiny_states
from Testing.training.stored_latents import (
    NEW_LESION,
    StoredLatents,
    label_values,
    labels_with,
    table_with_a_new_lesion,
)

SCHEDULE = FlowSchedule(base_latent_voxels=8**3)


def made(
    *labels: torch.Tensor | None,
    table: Any = None,
    trained: bool = False,
    kind: Any = "rflow",
    data: StoredLatents | None = None,
    **asked: Any,
) -> ControlNetTask:
    """A task on these label maps; ``trained`` starts from a ControlNet whose residuals are not zero."""
    definitions = tiny_definitions(kind)
    states = tiny_states(definitions, seed=5)
    unet = build_network(definitions["diffusion"])
    unet.load_state_dict(states["diffusion"])
    stored: Any = data or StoredLatents(list(labels))
    return ControlNetTask(
        ControlNetRecipe(steps=1, init_from="tiny", **asked),
        unet,
        definitions["controlnet"],
        SCHEDULE if kind == "rflow" else make_schedule({"kind": "ddpm"}),
        stored,
        stored,
        table or default_table(),
        states["controlnet"] if trained else None,
    )


def batch_of(task: ControlNetTask, *indices: int) -> Tensors:
    items = [task.load_item(i, random.Random(f"item {i}")) for i in indices]
    return {name: torch.stack([item[name] for item in items]) for name in items[0]}


def test_controlnet_starts_as_a_copy_of_the_unet_and_says_nothing() -> None:
    task = made(labels_with())
    controlnet, unet = task.networks["controlnet"].state_dict(), task._unet.state_dict()
    for name in ("conv_in.conv.weight", "down_blocks.0.resnets.0.conv1.conv.weight", "class_embedding.weight"):
        assert torch.equal(controlnet[name], unet[name])
    batch = batch_of(task, 0)
    with torch.no_grad():
        alone = predict(task._unet, SCHEDULE.noisy(batch["clean"], batch["noise"], batch["time"]), batch["time"],
                        condition_inputs(batch))  # fmt: skip
        expected = (alone - (batch["clean"] - batch["noise"])).abs().mean()
        torch.testing.assert_close(task.losses("main", batch)["loss"][0], expected)


def test_the_unet_stays_as_it_is_while_the_controlnet_learns() -> None:
    task = made(labels_with(), labels_with(LUNG_TUMOR), trained=True)
    assert set(task.networks) == {"controlnet"}
    before = {name: value.clone() for name, value in task._unet.state_dict().items()}
    network, batch = task.networks["controlnet"], batch_of(task, 0, 1)
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
    measured = []
    for _ in range(12):
        optimizer.zero_grad()
        loss = task.losses("main", batch)["loss"].mean()
        loss.backward()
        optimizer.step()
        measured.append(float(loss.detach()))
    assert measured[-1] < 0.95 * measured[0]
    assert all(torch.equal(value, before[name]) for name, value in task._unet.state_dict().items())
    assert all(p.grad is None for p in task._unet.parameters())


def test_a_latent_voxel_counts_more_if_one_of_its_voxels_has_the_label() -> None:
    labels = labels_with()
    labels[7, 7, 5] = LUNG_TUMOR  # one image voxel of latent voxel (3, 3, 2)
    task = made(labels, trained=True, weighted_labels=[LUNG_TUMOR], weighted_loss=100)
    batch = batch_of(task, 0)
    assert batch["weight"].sum() == 8**3 - 1 + 100
    assert batch["weight"][0, 0, 3, 3, 2] == 100
    plain = made(labels, trained=True)
    with torch.no_grad():
        weighted, without = (float(t.losses("main", batch_of(t, 0))["loss"]) for t in (task, plain))
        error = (task._predicted(task.networks["controlnet"], batch, batch["bits"])
                 - (batch["clean"] - batch["noise"])).abs()  # fmt: skip
    assert without == pytest.approx(float(error.mean()), rel=1e-5)
    assert weighted == pytest.approx(float((error * batch["weight"]).mean()), rel=1e-5)  # mean(w|v̂ − v|), as published


def test_air_counts_less() -> None:
    weight = batch_of(made(labels_with(), air_weight=0.25), 0)["weight"]
    assert set(weight.unique().tolist()) <= {0.25, 1.0}
    assert made(labels_with(), air_weight=1.0).load_item(0, random.Random(0))["weight"].unique().tolist() == [1.0]


def test_contrast_wants_lesion_and_host_apart_inside_and_the_host_right_outside() -> None:
    asked: dict[str, Any] = {"contrastive_labels": [NEW_LESION], "contrastive_weight": 0.01}
    task = made(labels_with(NEW_LESION), trained=True, table=table_with_a_new_lesion(), **asked)
    batch = batch_of(task, 0)
    assert set(np.unique(label_values(batch["bits"][0]))) == {0, LIVER, LUNG, BODY, NEW_LESION}
    assert np.array_equal(label_values(batch["host_bits"][0]), labels_with().numpy())  # a liver again
    assert batch["lesion"].nonzero().tolist() == [[0, 0, 3, 3, 2]]
    assert (batch["around"] == 0).sum() == 5**3  # two voxels to each side are its rim
    assert not batch["around"][batch["lesion"] > 0].any()
    network = task.networks["controlnet"]
    with torch.no_grad():
        ill, healthy = (task._predicted(network, batch, batch[name]) for name in ("bits", "host_bits"))
        losses = task.losses("main", batch)
    apart = float((ill - healthy).abs()[0, :, 3, 3, 2].mean())
    assert 0 < apart < 2
    assert float(losses["lesion"]) == pytest.approx(-apart, rel=1e-3)  # ReLU(δ − d) − δ with d below δ
    outside = (healthy - (batch["clean"] - batch["noise"])).abs()[(batch["around"] > 0).expand_as(healthy)]
    assert float(losses["around"]) == pytest.approx(float(outside.mean()), rel=1e-4)
    expected = losses["prediction"] + 0.01 * (losses["lesion"] + losses["around"])
    torch.testing.assert_close(losses["loss"], expected)
    narrow = made(labels_with(NEW_LESION), trained=True, table=table_with_a_new_lesion(), **asked,
                  contrastive_margin=apart / 2)  # fmt: skip
    with torch.no_grad():
        assert float(narrow.losses("main", batch)["lesion"]) == pytest.approx(-apart / 2, rel=1e-3)  # apart enough


def test_both_predictions_of_the_contrast_teach_the_controlnet() -> None:
    task = made(labels_with(LUNG_TUMOR), trained=True, contrastive_labels=[LUNG_TUMOR], contrastive_weight=0.01)
    losses = task.losses("main", batch_of(task, 0))
    for name in ("lesion", "around"):
        weight = task.networks["controlnet"].get_parameter("controlnet_cond_embedding.conv_in.conv.weight")
        (gradient,) = torch.autograd.grad(losses[name].sum(), [weight], retain_graph=True)
        assert gradient.abs().max() > 0


def test_what_it_starts_from_teaches_the_surroundings_and_the_data_the_lesion() -> None:
    asked: dict[str, Any] = {"weighted_labels": [NEW_LESION], "weighted_loss": 5.0}
    labels, table = labels_with(NEW_LESION), table_with_a_new_lesion()
    plain = made(labels, trained=True, table=table, **asked)
    task = made(labels, trained=True, table=table, **asked, preserve=True)
    batch = batch_of(task, 0)
    assert np.array_equal(label_values(batch["parent_bits"][0]), labels_with().numpy())  # the parent knows a liver
    assert int(batch["learned"].sum()) == 5**3
    with torch.no_grad():
        parent = task._predicted(task.networks["controlnet"], batch, batch["parent_bits"])
        target = task._target(batch)
    learned = (batch["learned"] > 0).expand_as(target)
    torch.testing.assert_close(target[~learned], parent[~learned])
    torch.testing.assert_close(target[learned], plain._target(batch)[learned])
    with torch.no_grad():
        for parameter in task.networks["controlnet"].parameters():
            parameter.add_(0.1)  # learning moves the network, not its teacher
        torch.testing.assert_close(task._target(batch), target)


def test_a_patient_without_lesion_is_taught_by_what_it_starts_from_alone() -> None:
    task = made(labels_with(), trained=True, weighted_labels=[LUNG_TUMOR], preserve=True)
    losses = task.losses("main", batch_of(task, 0))
    assert float(losses["loss"].detach()) < 1e-6


def test_a_patient_without_lesion_is_not_contrasted(monkeypatch: pytest.MonkeyPatch) -> None:
    task = made(labels_with(), trained=True, contrastive_labels=[LUNG_TUMOR], contrastive_weight=0.01)
    asked = []
    predicted = task._predicted
    monkeypatch.setattr(task, "_predicted", lambda *given: asked.append(1) or predicted(*given))
    losses = task.losses("main", batch_of(task, 0))
    assert len(asked) == 1
    assert losses["lesion"] == losses["around"] == 0
    assert torch.equal(losses["loss"], losses["prediction"])


def test_a_sample_does_not_depend_on_its_batch() -> None:
    labels = [labels_with(), labels_with(LUNG_TUMOR), labels_with()]
    task = made(*labels, trained=True, contrastive_labels=[LUNG_TUMOR], contrastive_weight=0.01,
                weighted_labels=[LUNG_TUMOR])  # fmt: skip
    with torch.no_grad():
        together = task.losses("main", batch_of(task, 0, 1, 2))
        alone = [task.losses("main", batch_of(task, i)) for i in range(3)]
    for name, values in together.items():
        assert values.shape == (3,)
        torch.testing.assert_close(values, torch.cat([losses[name] for losses in alone]), rtol=1e-4, atol=1e-5)


def test_forgotten_labels_become_body_in_both_masks_but_never_those_to_be_learned() -> None:
    task = made(labels_with(LUNG_TUMOR), label_dropout=1.0, contrastive_labels=[LUNG_TUMOR], contrastive_weight=0.01)
    item = task.load_item(0, random.Random(1))
    assert set(np.unique(label_values(item["bits"]))) == {0, BODY, LUNG_TUMOR}
    assert set(np.unique(label_values(item["host_bits"]))) <= {0, BODY, LUNG}


def test_sometimes_the_modality_is_told_coarsely() -> None:
    always, never = made(labels_with(), modality_dropout=1.0, coarse_modality=3), made(labels_with())
    assert always.load_item(0, random.Random(0))["class_labels"] == 3
    assert never.load_item(0, random.Random(0))["class_labels"] == 1


def test_an_item_is_the_same_for_the_same_random_numbers() -> None:
    task = made(labels_with(), label_dropout=0.5)
    one, two, other = (task.load_item(0, random.Random(seed)) for seed in (7, 7, 8))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not torch.equal(one["noise"], other["noise"])


def test_validation_measures_the_region_too_and_is_the_same_every_time() -> None:
    task = made(labels_with(LUNG_TUMOR), labels_with(), trained=True, weighted_labels=[LUNG_TUMOR], label_dropout=1.0)
    with torch.no_grad():
        with_tumor, without = (task.validate_item(i, task.networks) for i in (0, 1))
        assert task.validate_item(0, task.networks) == with_tumor
    assert set(with_tumor) == {"loss", "region_loss"}
    assert set(without) == {"loss"}


def test_region_aware_models_learn_too() -> None:
    data = StoredLatents([labels_with()], regions=(1, 2))
    task = made(kind="ddpm", data=data, trained=True)
    assert torch.isfinite(task.losses("main", batch_of(task, 0))["loss"]).all()
    task = made(labels_with(), kind="ddpm")
    with pytest.raises(TrainingError, match="case_0 has no top-most body region"):
        task.load_item(0, random.Random(0))


def test_less_memory_gives_the_same_gradients() -> None:
    gradients = []
    for checkpointed in (False, True):
        task = made(
            labels_with(LUNG_TUMOR),
            trained=True,
            contrastive_labels=[LUNG_TUMOR],
            contrastive_weight=0.01,
            checkpoint_activations=checkpointed,
        )
        task.losses("main", batch_of(task, 0))["loss"].mean().backward()
        gradients.append({n: p.grad for n, p in task.networks["controlnet"].named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-5, atol=1e-8)


def test_labels_that_cannot_be_learned_are_refused() -> None:
    with pytest.raises(TrainingError, match=r"Label 1 \(liver\) is to be contrasted with its host, and has none"):
        made(labels_with(), contrastive_labels=[LIVER], contrastive_weight=0.01)
    with pytest.raises(TrainingError, match="label 150, which the label table 'MAISI' does not have"):
        made(labels_with(), weighted_labels=[NEW_LESION])


def test_data_that_cannot_be_learned_from_are_refused_by_name() -> None:
    with pytest.raises(TrainingError, match="pt_7 has no label map"):
        made(data=StoredLatents([None], names=["pt_7"])).load_item(0, random.Random(0))
    with pytest.raises(TrainingError, match="case_0 has modality code 500; this network knows 0 to 127"):
        made(data=StoredLatents([labels_with()], modality=500)).load_item(0, random.Random(0))


def test_networks_that_do_not_belong_together_are_refused() -> None:
    definitions = tiny_definitions()
    stored: Any = StoredLatents([labels_with()])
    recipe = ControlNetRecipe(steps=1, init_from="tiny")
    unet = build_network(definitions["diffusion"])
    wide = {**definitions["controlnet"], "num_channels": [32, 32]}
    with pytest.raises(TrainingError, match="definition does not fit its UNet"):
        ControlNetTask(recipe, unet, wide, SCHEDULE, stored, stored, default_table())
    with pytest.raises(BundleError, match="weights to start from"):
        ControlNetTask(
            recipe, unet, definitions["controlnet"], SCHEDULE, stored, stored, default_table(), {"x": torch.ones(1)}
        )


def test_a_schedule_that_does_not_fit_is_named() -> None:
    with pytest.raises(TrainingError, match=r"The recipe's schedule does not fit: kind is 'rflw': Input should be"):
        make_schedule({"kind": "rflw"})
    with pytest.raises(TrainingError, match=r"beta_begin is 0\.1: Extra"):
        make_schedule({"kind": "ddpm", "beta_begin": 0.1})
