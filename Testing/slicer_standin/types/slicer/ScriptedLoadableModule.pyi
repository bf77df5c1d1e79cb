# For the type checker only: names instead of __getattr__, because modules import them with a star.
from typing import Any

ScriptedLoadableModule: Any
ScriptedLoadableModuleWidget: Any
ScriptedLoadableModuleTest: Any
