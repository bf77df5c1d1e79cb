# For the type checker only: qSlicerSegmentationsEditorEffectsPythonQt has no types, so everything in it is Any.
from typing import Any

def __getattr__(name: str) -> Any: ...
