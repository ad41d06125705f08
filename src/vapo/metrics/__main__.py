"""Print docs/metrics.md, to a file if one is named."""

from __future__ import annotations

import sys
from pathlib import Path

from vapo.metrics.metrics_page import metrics_page

if len(sys.argv) > 1:
    Path(sys.argv[1]).write_text(metrics_page(), encoding="utf-8")
else:
    print(metrics_page(), end="")
