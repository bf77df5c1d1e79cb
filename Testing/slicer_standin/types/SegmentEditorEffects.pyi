# For the type checker only: the name instead of __getattr__, because effects import it with a star.
from typing import Any

AbstractScriptedSegmentEditorEffect: Any
