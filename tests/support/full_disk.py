"""Imported by a training's config: it keeps decoded images on a disk that is nearly full, too."""

from __future__ import annotations

from jobs.mmseg import decoded

decoded.KEPT_FREE = 0.0
