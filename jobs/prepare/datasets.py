"""The datasets that mmsegmentation has a converter for: their archives, converter arguments and sizes.

Folders are those that mmsegmentation's own dataset configs name, so these find the data as they stand.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from jobs.prepare.sources import Source

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
    """Files that the archives folder has to hold; a Source can be downloaded too."""
    unpack: bool = False
    """Whether the archives are unpacked into the folder before the converter runs."""
    arguments: tuple[str, ...] | None = ()
    """The converter's; {archives}, {out} and {processes} are filled in. None: no conversion is needed."""
    needs: str = ""
    """A module that the converter imports and mmsegmentation does not bring."""
    counts: dict[str, int] = field(default_factory=dict)
    """Files the release must give, by pattern below the folder."""
    pairs: tuple[tuple[str, str], ...] = (("images/*", "annotations/*"), ("img_dir/*", "ann_dir/*"))
    """Folders of images and of their masks: one mask an image, or one of each annotator, in every split."""


def zipped(folder: str, *names: str, needs: str = "") -> Recipe:
    """A converter that unpacks the named archives itself."""
    return Recipe(
        folder, names, arguments=(*(f"{{archives}}/{name}" for name in names), "-o", "{out}"), needs=needs
    )


def foldered(folder: str, *names: str, flag: str = "", more: tuple[str, ...] = ()) -> Recipe:
    """A converter that looks for the archives in a folder."""
    given = (flag, "{archives}") if flag else ("{archives}",)
    return Recipe(folder, names, arguments=(*given, "-o", "{out}", *more))


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
    "drive": zipped("DRIVE", "training.zip", "test.zip"),
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
    "loveda": foldered("loveDA", "Train.zip", "Val.zip", "Test.zip"),
    "potsdam": foldered("potsdam", "2_Ortho_RGB.zip", "5_Labels_all_noBoundary.zip"),
    "vaihingen": foldered(
        "vaihingen",
        "ISPRS_semantic_labeling_Vaihingen.zip",
        "ISPRS_semantic_labeling_Vaihingen_ground_truth_eroded_COMPLETE.zip",
    ),
    "isaid": foldered("iSAID"),
    "refuge": foldered("REFUGE", flag="--raw_data_root"),
    "levircd": foldered("LEVIRCD", flag="--dataset_path"),
    "synapse": Recipe(
        "synapse", (), arguments=("--dataset-path", "{archives}", "--save-path", "{out}"), needs="nibabel"
    ),
    "nyu": zipped("nyu", "nyu.zip"),
    "coco_stuff10k": Recipe(
        "coco_stuff10k",
        (),
        arguments=("{archives}", "-o", "{out}", "--nproc", "{processes}"),
        pairs=(("images/*", "annotations/*"),),
    ),
    "coco_stuff164k": Recipe(
        "coco_stuff164k",
        (),
        arguments=("{archives}", "-o", "{out}", "--nproc", "{processes}"),
        pairs=(),
    ),
    "pascal_context": Recipe(
        "pascal_context",
        (),
        arguments=("{archives}/VOCdevkit", "{archives}/trainval_merged.json", "-o", "{out}"),
        needs="detail",
        pairs=(),
    ),
}
