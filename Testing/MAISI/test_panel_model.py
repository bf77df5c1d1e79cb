"""The *Model* section: choosing, downloading, importing and removing bundles."""

from __future__ import annotations

from typing import Any

from Testing.MAISI.panel_user import PanelUser
from Testing.MAISI.scripted_client import WHOLE_BODY


def test_choosing_a_bundle_shows_what_it_can_do(user: PanelUser) -> None:
    assert not user.sees("regionFrame")
    user.choose("bundleComboBox", "whole-body")
    assert user.sees("regionFrame")
    assert user.offered("modalityComboBox") == ["ct", "ct_contrast"]
    assert "2.4 GB" in user.reads("bundleLabel")
    assert "NVIDIA Open Model License" in user.reads("bundleLabel")


def test_a_folder_may_be_called_otherwise_than_its_manifest_says(user: PanelUser) -> None:
    """As after a copy by hand."""
    user.client.answers["describe"] = {**WHOLE_BODY, "name": "the original"}
    user.choose("bundleComboBox", "whole-body")
    assert user.offered("modalityComboBox") == ["ct", "ct_contrast"]
    assert user.find("generateButton").enabled
    assert user.offered("hostComboBox")


def test_asking_the_engine_again_keeps_what_was_set(user: PanelUser) -> None:
    user.find("stepsSpinBox").value = 12
    user.type("sizeXSpinBox", "96")
    user.press("checkButton")
    assert (user.find("stepsSpinBox").value, user.find("sizeXSpinBox").value) == (12, 96)
    user.choose("bundleComboBox", "whole-body")
    assert (user.find("stepsSpinBox").value, user.find("sizeXSpinBox").value) == (30, 256)


def test_a_bundle_that_is_not_here_cannot_generate(user: PanelUser) -> None:
    user.choose("bundleComboBox", "nv-rflow-ct")
    assert not user.find("generateButton").enabled
    assert "on this computer" in user.reads("costLabel")
    user.choose("bundleComboBox", "head-neck-mini")
    assert user.find("generateButton").enabled


def test_weights_are_downloaded_after_the_licence_was_accepted(user: PanelUser, dialogs: Any) -> None:
    import qt

    seen: list[Any] = []

    def answer(dialog: Any) -> int:
        box = dialog.findChild(qt.QDialogButtonBox).button(qt.QDialogButtonBox.Ok)
        seen.append((dialog.findChild(qt.QLabel, "licenceLabel").text, box.enabled))
        dialog.findChild(qt.QCheckBox, "licenceCheckBox").click()
        seen.append(box.enabled)
        return 1

    dialogs.answer_dialog = answer
    user.choose("bundleComboBox", "nv-rflow-ct")
    user.press("downloadButton")
    assert "https://example.org/terms" in seen[0][0]
    assert (seen[0][1], seen[1]) == (False, True)
    sent = user.client.last("download")
    assert sent.fields == {"bundle": "nv-rflow-ct", "accept_licence": True}
    sent.progress("download", 1_000_000_000, 4_000_000_000, message="1000 of 4000 MB", remaining_seconds=180)
    assert user.find("downloadProgressBar").value == 250
    assert user.reads("downloadLabel") == "1000 of 4000 MB · 3 min left"
    user.client.bundles[2].update(state="installed", folder="/bundles/nv-rflow-ct")
    user.client.answers["describe"] = lambda fields: {**WHOLE_BODY, "name": fields["bundle"]}
    sent.result({"folder": "/bundles/nv-rflow-ct"})
    assert user.find("bundleComboBox").currentData == "nv-rflow-ct"
    assert user.find("generateButton").enabled


def test_a_licence_that_is_declined_downloads_nothing(user: PanelUser, dialogs: Any) -> None:
    dialogs.answer_dialog = lambda dialog: 0
    user.choose("bundleComboBox", "nv-rflow-ct")
    user.press("downloadButton")
    assert user.client.all("download") == []


def test_a_download_can_be_cancelled(user: PanelUser, dialogs: Any) -> None:
    dialogs.answer_dialog = lambda dialog: 1
    user.choose("bundleComboBox", "nv-rflow-ct")
    user.press("downloadButton")
    assert user.reads("downloadButton") == "Cancel"
    user.press("downloadButton")
    sent = user.client.last("download")
    assert sent.isCancelled
    sent.cancelled()
    assert user.reads("downloadButton") == "Download"
    assert not user.sees("downloadProgressBar")


def test_a_bundle_is_imported_from_a_folder(user: PanelUser, dialogs: Any) -> None:
    dialogs.paths = ["/stick/mein Modell"]
    user.press("importButton")
    assert user.client.last("import").fields["folder"] == "/stick/mein Modell"
    user.client.last("import").fail("The folder holds no bundle.json. Choose the folder of a bundle.", "BundleError")
    assert "bundle.json" in user.message
    assert user.find("importButton").enabled


def test_a_folder_with_weights_under_a_licence_is_imported_after_consent(user: PanelUser, dialogs: Any) -> None:
    asked: list[Any] = []

    def answer(dialog: Any) -> int:
        asked.append(dialog)
        return 1

    dialogs.answer_dialog, dialogs.paths = answer, ["/stick/weights"]
    user.press("importButton")
    refusal = "The weights of 'nv-rflow-ct' come under the NVIDIA Open Model License (https://example.org/terms)."
    user.client.last("import").fail(refusal, "LicenceError")
    assert len(asked) == 1
    sent = user.client.last("import")
    assert sent.fields == {"folder": "/stick/weights", "accept_licence": True}
    user.client.bundles[2].update(state="installed", folder="/bundles/nv-rflow-ct")
    user.client.answers["describe"] = lambda fields: {**WHOLE_BODY, "name": fields["bundle"]}
    sent.result({"name": "nv-rflow-ct", "folder": "/bundles/nv-rflow-ct", "notes": ["The mask library is missing."]})
    assert user.find("bundleComboBox").currentData == "nv-rflow-ct"
    assert user.message == "The mask library is missing."


def test_a_bundle_that_was_removed_elsewhere_is_not_used_on(user: PanelUser) -> None:
    user.choose("bundleComboBox", "whole-body")
    del user.client.bundles[1]
    user.press("checkButton")
    assert "whole-body" in user.message
    assert user.find("bundleComboBox").currentData == "head-neck-mini"
    assert user.find("generateButton").enabled


def test_removing_asks_first(user: PanelUser, dialogs: Any) -> None:
    user.choose("bundleComboBox", "whole-body")
    dialogs.answers = [False, True]
    user.press("removeButton")
    assert user.client.all("remove") == []
    user.press("removeButton")
    assert user.client.last("remove").fields == {"bundle": "whole-body"}


def test_the_embedded_bundle_cannot_be_removed(user: PanelUser) -> None:
    assert not user.find("removeButton").enabled
