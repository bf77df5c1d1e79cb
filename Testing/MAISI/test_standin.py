"""The stand-in for the application keeps the manners of PythonQt and Slicer that the modules rely on."""

from __future__ import annotations

import importlib
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

UI = """<?xml version="1.0" encoding="UTF-8"?>
<ui version="4.0"><class>Small</class>
 <widget class="qMRMLWidget" name="Small"><layout class="QVBoxLayout" name="all">
  <item><widget class="ctkCollapsibleButton" name="section">
   <property name="text"><string>Section</string></property><property name="collapsed"><bool>true</bool></property>
   <layout class="QFormLayout" name="form"><item row="0" column="1"><widget class="qMRMLNodeComboBox" name="volumes">
    <property name="nodeTypes"><stringlist><string>vtkMRMLScalarVolumeNode</string></stringlist></property>
    <property name="noneEnabled"><bool>true</bool></property>
   </widget></item><item row="1" column="1"><widget class="QPushButton" name="button"/></item></layout>
  </widget></item></layout></widget>
 <connections><connection><sender>Small</sender><signal>mrmlSceneChanged(vtkMRMLScene*)</signal>
  <receiver>volumes</receiver><slot>setMRMLScene(vtkMRMLScene*)</slot></connection></connections></ui>
"""

MODULE = """
from slicer.ScriptedLoadableModule import *
import qt, slicer
from slicer.i18n import tr as _

class Small(ScriptedLoadableModule):
    def __init__(self, parent):
        ScriptedLoadableModule.__init__(self, parent)
        parent.title = _("Small")
        slicer.app.connect("startupCompleted()", self.onStarted)
    def onStarted(self):
        SmallWidget.log.append("started")

class SmallWidget(ScriptedLoadableModuleWidget):
    log = []
    def setup(self):
        ScriptedLoadableModuleWidget.setup(self)
        widget = slicer.util.loadUI(self.resourcePath("UI/Small.ui"))
        self.layout.addWidget(widget)
        self.ui = slicer.util.childWidgetVariables(widget)
        widget.setMRMLScene(slicer.mrmlScene)
        self.ui.button.connect("clicked(bool)", self.onButton)
    def onButton(self):
        self.log.append("clicked")
    def enter(self):
        self.log.append("enter")
    def exit(self):
        self.log.append("exit")
    def cleanup(self):
        self.log.append("cleanup")
"""

EFFECT = """
from SegmentEditorEffects import *
import qt, qSlicerSegmentationsEditorEffectsPythonQt as effects

class SegmentEditorEffect(AbstractScriptedSegmentEditorEffect):
    log = []
    def __init__(self, scriptedEffect):
        scriptedEffect.name = "Small effect"
        AbstractScriptedSegmentEditorEffect.__init__(self, scriptedEffect)
    def clone(self):
        clone = effects.qSlicerSegmentEditorScriptedEffect(None)
        clone.setPythonSource(__file__)
        return clone
    def setupOptionsFrame(self):
        self.button = qt.QPushButton("Go")
        self.scriptedEffect.addOptionsWidget(self.button)
    def setMRMLDefaults(self):
        self.scriptedEffect.setParameterDefault("steps", 3)
    def activate(self):
        self.log.append("activate")
    def deactivate(self):
        self.log.append("deactivate")
    def cleanup(self):
        self.log.append("cleanup")
    def updateGUIFromMRML(self):
        self.log.append(self.scriptedEffect.integerParameter("steps"))
"""


@pytest.fixture
def qt(scene: Any) -> Any:
    return importlib.import_module("qt")


@pytest.fixture
def slicer(scene: Any) -> Any:
    return importlib.import_module("slicer")


@pytest.fixture
def small(tmp_path: Path, loadedModule: Callable[..., Any]) -> Any:
    (tmp_path / "Resources" / "UI").mkdir(parents=True)
    (tmp_path / "Resources" / "UI" / "Small.ui").write_text(UI, encoding="utf-8")
    (tmp_path / "Small.py").write_text(textwrap.dedent(MODULE), encoding="utf-8")
    return loadedModule(tmp_path / "Small.py")


def test_properties_are_attributes_and_others_are_refused(qt: Any) -> None:
    label = qt.QLabel("one")
    label.text = "two"
    assert (label.text, label.name) == ("two", "")
    with pytest.raises(AttributeError, match="no attribute 'txet'"):
        label.txet = "three"
    with pytest.raises(AttributeError, match="not writable"):
        label.hasSelectedText = True
    with pytest.raises(AttributeError, match="no attribute 'singleShot'"):  # the static function has this name
        qt.QTimer().singleShot = True


def test_a_class_written_in_python_has_attributes_of_its_own(qt: Any) -> None:
    class Chart(qt.QWidget):
        pass

    chart = Chart()
    chart.values = [1, 2]
    assert chart.values == [1, 2]


def test_signals_are_connected_by_signature(qt: Any) -> None:
    heard: list[Any] = []
    button = qt.QPushButton()
    button.checkable = True
    button.connect("clicked(bool)", heard.append)
    button.connect("clicked()", lambda: heard.append("no argument"))
    button.connect("toggled(bool)", lambda: heard.append("takes none"))
    button.click()
    assert sorted(map(str, heard)) == ["True", "no argument", "takes none"]
    button.disconnect("clicked(bool)", heard.append)
    button.click()
    assert sorted(map(str, heard[3:])) == ["no argument", "takes none"]
    with pytest.raises(ValueError, match="no signal cliked"):
        button.connect("cliked()", print)


def test_a_connection_keeps_its_slot_alive(qt: Any) -> None:
    class Listener:
        heard = 0

        def listen(self) -> None:
            Listener.heard += 1

    button = qt.QPushButton()
    button.connect("clicked()", Listener().listen)
    button.click()
    assert Listener.heard == 1


def test_a_process_tells_its_output_and_its_end(qt: Any, waitUntil: Callable[..., None]) -> None:
    output, ends = [], []
    process = qt.QProcess()
    process.connect("readyReadStandardOutput()", lambda: output.append(process.readAllStandardOutput().data()))
    process.connect("finished(int,QProcess::ExitStatus)", lambda code, status: ends.append((code, status)))
    process.start(sys.executable, ["-c", "print('ready'); raise SystemExit(3)"])
    waitUntil(lambda: ends)
    assert b"".join(output).strip() == b"ready"
    assert ends == [(3, qt.QProcess.NormalExit)]
    assert process.state() == qt.QProcess.NotRunning


def test_an_error_in_a_slot_is_noticed(
    qt: Any, uncaught_errors: list[BaseException], capsys: pytest.CaptureFixture[str]
) -> None:
    button = qt.QPushButton()
    button.connect("clicked()", lambda: [][0])
    button.click()
    assert [type(error) for error in uncaught_errors] == [IndexError]
    uncaught_errors.clear()


def test_messages_are_kept_and_questions_answered(slicer: Any, dialogs: Any) -> None:
    slicer.util.errorDisplay("No disk space.", detailedText="0 GB")
    dialogs.answers = [False]
    assert slicer.util.confirmOkCancelDisplay("Remove it?") is False
    assert slicer.util.confirmYesNoDisplay("Sure?") is True
    assert [m.details for m in dialogs.messages if m.kind == "error"] == ["0 GB"]
    assert dialogs.texts("question") == ["Remove it?", "Sure?"]


def test_a_modal_dialog_without_an_answer_does_not_wait(qt: Any, dialogs: Any) -> None:
    with pytest.raises(AssertionError, match="no test answers it"):
        qt.QDialog().exec_()
    dialogs.answer_dialog = lambda dialog: 1
    assert qt.QDialog().exec_() == 1


def test_files_are_chosen_by_the_test(qt: Any, dialogs: Any) -> None:
    dialogs.paths = ["here.nii.gz"]
    assert qt.QFileDialog.getOpenFileName(None, "Open") == "here.nii.gz"
    assert qt.QFileDialog.getOpenFileName(None, "Open") == ""


def test_settings_last_for_one_test_only(qt: Any, slicer: Any) -> None:
    assert not slicer.app.settings().contains("MAISI/Python")
    slicer.app.settings().setValue("MAISI/Python", "python3")
    assert slicer.util.settingsValue("MAISI/Python", "") == "python3"


test_settings_of_the_test_before_are_gone = test_settings_last_for_one_test_only


def test_a_module_is_loaded_with_its_ui_and_left_again(small: Any, slicer: Any) -> None:
    volume = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "CT")
    small.ui.volumes.setCurrentNode(volume)
    assert small.ui.volumes.currentNode() is volume
    assert slicer.modules.small.title == "Small"
    assert slicer.util.getModuleWidget("Small") is small
    small.ui.button.click()
    slicer.util.selectModule("Volumes")
    slicer.mrmlScene.Clear(0)
    assert small.ui.volumes.currentNode() is None
    assert small.log == ["started", "enter", "clicked", "exit"]


def test_a_selector_follows_the_names_and_lets_removed_nodes_go(small: Any, slicer: Any) -> None:
    volume = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "CT")
    small.ui.volumes.setCurrentNode(volume)
    volume.SetName("CT of Anna")
    assert small.ui.volumes.currentText == "CT of Anna"
    slicer.mrmlScene.RemoveNode(volume)
    assert small.ui.volumes.currentNodeID == ""
    assert volume.GetReferenceCount() == 1


def test_a_module_is_reloaded_in_place(small: Any, slicer: Any) -> None:
    slicer.util.reloadScriptedModule("Small")
    again = slicer.util.getModuleWidget("Small")
    assert small.log == ["started", "enter", "cleanup"]
    assert again is not small
    assert again.ui.button.text == ""


def test_a_widget_without_a_stand_in_is_named(slicer: Any, tmp_path: Path) -> None:
    path = tmp_path / "Wrong.ui"
    path.write_text(UI.replace("qMRMLNodeComboBox", "qMRMLNothing"), encoding="utf-8")
    with pytest.raises(ValueError, match="qMRMLNothing"):
        slicer.util.loadUI(str(path))


def test_a_collapsed_section_is_as_high_as_its_button(small: Any, app: Any) -> None:
    frame = small.parent
    frame.show()
    app.processEvents()
    collapsed = small.ui.section.height
    small.ui.section.collapsed = False
    app.processEvents()
    assert small.ui.section.height > collapsed + small.ui.button.height


def test_an_effect_is_activated_with_its_parameters(slicer: Any, tmp_path: Path) -> None:
    (tmp_path / "SegmentEditorEffect.py").write_text(EFFECT, encoding="utf-8")
    effect = importlib.import_module("qSlicerSegmentationsEditorEffectsPythonQt").qSlicerSegmentEditorScriptedEffect(
        None
    )
    effect.setPythonSource((tmp_path / "SegmentEditorEffect.py").as_posix())
    effect.self().register()
    try:
        editor = slicer.qMRMLSegmentEditorWidget()
        editor.setMRMLSegmentEditorNode(slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentEditorNode"))
        segmentation = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode")
        editor.setSegmentationNode(segmentation)
        editor.setActiveEffectByName("Small effect")
        active = editor.activeEffect()
        assert active.parameterSetNode().GetSegmentationNode() is segmentation
        active.setParameter("steps", 5)
        editor.discard()
        assert active.self().log == ["activate", 3, 5, "deactivate", "cleanup"]
    finally:
        slicer.qSlicerSegmentEditorEffectFactory.instance().effects.clear()


def test_view_nodes_follow_the_layout(slicer: Any) -> None:
    manager = slicer.app.layoutManager()
    assert manager.sliceViewNames() == ("Red", "Green", "Yellow")
    manager.setLayout(slicer.vtkMRMLLayoutNode.SlicerLayoutFourUpPlotView)
    assert manager.plotWidget(0).mrmlPlotViewNode().IsA("vtkMRMLPlotViewNode")
    manager.setLayout(slicer.vtkMRMLLayoutNode.SlicerLayoutFourUpView)
