"""The datasets besides VOC that can be made: their archives, converter arguments and sizes.

Folders are those that mmsegmentation's own dataset configs name, so these find the data as they stand; names
and sizes are those of its instructions. Each is made in the tests from small archives in the real layout.
The installed mmsegmentation's other converters can be run with --converter-args.
"""

from __future__ import annotations

import importlib.util
import re
import shlex
from dataclasses import dataclass, field, replace
from pathlib import Path

from jobs.catalog.sources import Source
from jobs.run.errors import UserError

VOC = ("voc", "voc_aug")
VOC_FOLDER = "VOCdevkit"
VOC_FILES = 25_533
"""Number of files of the prepared VOC 2012 with SBD."""
PACKED_FILES = 10
"""The most files of a packed dataset."""

ADE20K = Source(
    name="ADEChallengeData2016.zip",
    size=0,  # not published; the server tells it
    digests={"sha1": "219e1696abb36c8ba3a3afe7fb2f4b4606a897c7"},  # gluon-cv
    urls=("http://data.csail.mit.edu/places/ADEchallenge/ADEChallengeData2016.zip",),
)


@dataclass(frozen=True)
class Recipe:
    folder: str
    """Where the dataset appears, below the data root."""
    archives: tuple[str | Source, ...]
    """Paths of files required in the archives folder; a Source can also be downloaded."""
    unpack: bool = False
    """Whether the archives are unpacked into the folder before the converter runs."""
    arguments: tuple[str, ...] | None = ()
    """The converter's arguments, with {archives}, {out} and {processes} to fill in. None: no conversion."""
    needs: str = ""
    """A module that the converter imports, and that mmsegmentation does not install."""
    counts: dict[str, int] = field(default_factory=dict)
    """Number of files that the release must yield, by pattern below the folder."""
    pairs: tuple[tuple[str, str], ...] = (("images/*", "annotations/*"), ("img_dir/*", "ann_dir/*"))
    """Folders of images and masks: in every split, one mask per image, or per image and annotator."""


def zipped(folder: str, *names: str) -> Recipe:
    """The recipe for a converter that gets each archive as an argument, and unpacks them itself."""
    return Recipe(folder, names, arguments=(*(f"{{archives}}/{name}" for name in names), "-o", "{out}"))


def files_of(dataset: str) -> int:
    """The approximate number of files of a prepared dataset; 0 if unknown."""
    if dataset.lower() in VOC:
        return VOC_FILES
    recipe = RECIPES.get(dataset)
    return sum(recipe.counts.values()) if recipe else 0


def foldered(folder: str, *names: str, flag: str = "", counts: dict[str, int] | None = None) -> Recipe:
    """The recipe for a converter that finds its archives in a folder, and unpacks them itself."""
    given = (flag, "{archives}") if flag else ("{archives}",)
    return Recipe(folder, names, arguments=(*given, "-o", "{out}"), counts=counts or {})


def both(pattern: str, **splits: int) -> dict[str, int]:
    """Counts of images and of masks, equal in each split."""
    images, masks = ("img_dir", "ann_dir") if pattern == "dir" else ("images", "annotations")
    return {f"{kind}/{split}/*": count for split, count in splits.items() for kind in (images, masks)}


RECIPES: dict[str, Recipe] = {
    "ade20k": Recipe(
        "ade",
        (ADE20K,),
        unpack=True,
        arguments=None,
        counts={
            "ADEChallengeData2016/images/training/*.jpg": 20_210,
            "ADEChallengeData2016/images/validation/*.jpg": 2_000,
            "ADEChallengeData2016/annotations/training/*.png": 20_210,
            "ADEChallengeData2016/annotations/validation/*.png": 2_000,
        },
        pairs=(("ADEChallengeData2016/images/*", "ADEChallengeData2016/annotations/*"),),
    ),
    "cityscapes": Recipe(
        "cityscapes",
        ("leftImg8bit_trainvaltest.zip", "gtFine_trainvaltest.zip"),
        unpack=True,
        arguments=("{out}", "--nproc", "{processes}"),
        needs="cityscapesscripts",
        counts={
            "leftImg8bit/train/*/*_leftImg8bit.png": 2_975,
            "leftImg8bit/val/*/*_leftImg8bit.png": 500,
            "leftImg8bit/test/*/*_leftImg8bit.png": 1_525,
            "gtFine/train/*/*_labelTrainIds.png": 2_975,
            "gtFine/val/*/*_labelTrainIds.png": 500,
            "gtFine/test/*/*_labelTrainIds.png": 1_525,
        },
        pairs=(),
    ),
    "chase_db1": zipped("CHASE_DB1", "CHASEDB1.zip"),
    "hrf": zipped(
        "HRF",
        "healthy.zip",
        "healthy_manualsegm.zip",
        "glaucoma.zip",
        "glaucoma_manualsegm.zip",
        "diabetic_retinopathy.zip",
        "diabetic_retinopathy_manualsegm.zip",
    ),
    "stare": zipped("STARE", "stare-images.tar", "labels-ah.tar", "labels-vk.tar"),
    "loveda": foldered(
        "loveDA",
        "Train.zip",
        "Val.zip",
        "Test.zip",
        counts={**both("dir", train=2_522, val=1_669), "img_dir/test/*": 1_796},
    ),
    "potsdam": foldered(
        "potsdam",
        "2_Ortho_RGB.zip",
        "5_Labels_all_noBoundary.zip",
        counts=both("dir", train=3_456, val=2_016),
    ),
    "vaihingen": foldered(
        "vaihingen",
        "ISPRS_semantic_labeling_Vaihingen.zip",
        "ISPRS_semantic_labeling_Vaihingen_ground_truth_eroded_COMPLETE.zip",
        counts=both("dir", train=344, val=398),
    ),
    # Its archives lie in folders; the test images have no masks.
    "isaid": replace(
        foldered(
            "iSAID",
            *(f"train/images/part{number}.zip" for number in (1, 2, 3)),
            "train/Semantic_masks/images.zip",
            "val/images/part1.zip",
            "val/Semantic_masks/images.zip",
            *(f"test/images/part{number}.zip" for number in (1, 2)),
            counts=both("dir", train=33_978, val=11_644),
        ),
        pairs=(("img_dir/*", "ann_dir/train"), ("img_dir/*", "ann_dir/val")),
    ),
    "refuge": foldered(
        "REFUGE",
        "REFUGE-Training400.zip",
        "Annotation-Training400.zip",
        "REFUGE-Validation400.zip",
        "REFUGE-Validation400-GT.zip",
        "REFUGE-Test400.zip",
        "REFUGE-Test-GT.zip",
        flag="--raw_data_root",
        counts=both("images", training=400, validation=400, test=400),
    ),
    # Unpacked, as MMSegmentation's instructions have it: the folders images, annotations (and imageLists).
    "coco_stuff10k": Recipe(
        "coco_stuff10k",
        (),
        arguments=("{archives}", "-o", "{out}", "--nproc", "{processes}"),
        counts=both("images", train2014=9_000, test2014=1_000),
    ),
    "coco_stuff164k": Recipe(
        "coco_stuff164k",
        (),
        arguments=("{archives}", "-o", "{out}", "--nproc", "{processes}"),
        counts=both("images", train2017=118_287, val2017=5_000),
    ),
}


def folder_of(dataset: str) -> str:
    """The folder below the data root in which a dataset appears; `dataset` as for `--dataset`."""
    name = dataset.lower() or "voc"
    if name in VOC:
        return VOC_FOLDER
    return RECIPES[name].folder if name in RECIPES else name


def dataset_of(folder: str) -> str:
    """The dataset that appears in a folder: the inverse of `folder_of`."""
    if folder == VOC_FOLDER:
        return "voc"
    return next((name for name, recipe in RECIPES.items() if recipe.folder == folder), folder)


def check_name(dataset: str, own_arguments: bool) -> str:
    """The dataset's name as it is stored. `own_arguments`: --converter-args is given.

    Raises UserError for a dataset that neither we nor the installed mmsegmentation know.
    """
    name = dataset.lower()
    if name in VOC:
        return "voc"
    if name in RECIPES:
        return name
    there = sorted(set(converters()) - {*RECIPES, *VOC})
    # Without mmsegmentation here (the job's interpreter may differ), the job itself decides.
    if own_arguments and re.fullmatch(r"[a-z0-9_]+", name) and (name in there or not there):
        return name
    more = f"; with --converter-args also {', '.join(there)}" if there else ""
    raise UserError(
        f"--dataset {dataset} is not known: choose one of {', '.join(sorted({*RECIPES, 'voc'}))}{more}"
    )


def split_arguments(text: str) -> tuple[str, ...]:
    """--converter-args split into arguments, with shell quoting. Raises UserError."""
    try:
        return tuple(shlex.split(text))
    except ValueError as error:
        raise UserError(f"--converter-args {text!r}: {error}") from None


def converters(kind: str = "dataset_converters") -> dict[str, Path]:
    """The installed mmsegmentation's converters (or its `model_converters`) by name; without importing it,
    which takes seconds."""
    spec = importlib.util.find_spec("mmseg")
    if spec is None or not spec.submodule_search_locations:
        return {}
    package = Path(next(iter(spec.submodule_search_locations)))
    # A wheel has its tools below .mim; a checkout beside the package.
    for tools in (package / ".mim/tools", package.parent / "tools"):
        folder = tools / kind
        if folder.is_dir():
            return {path.stem: path for path in sorted(folder.glob("[!_]*.py"))}
    return {}
