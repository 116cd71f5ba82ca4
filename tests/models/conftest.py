"""The pieces that recipes share import one another by name, as recipes import them."""

from __future__ import annotations

import sys

from tests.data import ROOT

if str(ROOT / "models") not in sys.path:
    sys.path.append(str(ROOT / "models"))
