"""What inherits it: `read_base`, a class of one's own, weights by `PretrainedInit`."""

from mmcv.transforms import LoadImageFromFile, RandomFlip, RandomResize, Resize
from mmengine.config import read_base
from mmengine.dataset import DefaultSampler, InfiniteSampler
from mmengine.model import PretrainedInit
from mmengine.optim import OptimWrapper, PolyLR
from mmengine.runner import IterBasedTrainLoop, TestLoop, ValLoop
from mmseg.datasets import PascalVOCDataset
from mmseg.datasets.transforms import LoadAnnotations, PackSegInputs, PhotoMetricDistortion, RandomCrop
from mmseg.evaluation import IoUMetric
from pure_head import Head
from torch.optim import SGD

with read_base():
    from .base import *

model["decode_head"]["type"] = Head
model.update(
    dict(backbone=dict(model["backbone"], init_cfg=dict(type=PretrainedInit, checkpoint="pure.pth")))
)

images = dict(img_path="JPEGImages", seg_map_path="SegmentationClass")
train_dataloader = dict(
    batch_size=4,
    num_workers=0,
    sampler=dict(type=InfiniteSampler, shuffle=True),
    dataset=dict(
        type=PascalVOCDataset,
        data_root="data/VOCdevkit/VOC2012",
        data_prefix=images,
        ann_file="ImageSets/Segmentation/trainaug.txt",
        pipeline=[
            dict(type=LoadImageFromFile),
            dict(type=LoadAnnotations),
            dict(type=RandomResize, scale=(64, 48), ratio_range=(0.5, 2.0), keep_ratio=True),
            dict(type=RandomCrop, crop_size=size, cat_max_ratio=0.75),
            dict(type=RandomFlip, prob=0.5),
            dict(type=PhotoMetricDistortion),
            dict(type=PackSegInputs),
        ],
    ),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=0,
    sampler=dict(type=DefaultSampler, shuffle=False),
    dataset=dict(
        type=PascalVOCDataset,
        data_root="data/VOCdevkit/VOC2012",
        data_prefix=images,
        ann_file="ImageSets/Segmentation/val.txt",
        pipeline=[
            dict(type=LoadImageFromFile),
            dict(type=Resize, scale=(64, 48), keep_ratio=True),
            dict(type=LoadAnnotations),
            dict(type=PackSegInputs),
        ],
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(type=IoUMetric, iou_metrics=["mIoU"])
test_evaluator = val_evaluator
optim_wrapper = dict(type=OptimWrapper, optimizer=dict(type=SGD, lr=0.01, momentum=0.9))
param_scheduler = [dict(type=PolyLR, eta_min=1e-4, power=0.9, begin=0, end=4, by_epoch=False)]
train_cfg = dict(type=IterBasedTrainLoop, max_iters=4, val_interval=2)
val_cfg = dict(type=ValLoop)
test_cfg = dict(type=TestLoop)
