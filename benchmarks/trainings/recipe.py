"""The recipe's network, whole, with its checkpoint of 532 MB, on small crops: a CPU takes such a step in
about a second. Random weights, no validation."""

_base_ = "../../configs/upernet_r50_voc-aug_512x512_epoch-200.py"

size = (64, 64)
norm = dict(type="BN", requires_grad=True)
model = dict(
    pretrained=None,
    data_preprocessor=dict(size=size),
    backbone=dict(norm_cfg=norm),
    decode_head=dict(norm_cfg=norm),
    auxiliary_head=dict(norm_cfg=norm),
)
train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations"),
    dict(type="RandomResize", scale=(2048, 512), ratio_range=(0.5, 2.0), keep_ratio=True),
    dict(type="RandomCrop", crop_size=size, cat_max_ratio=0.75),
    dict(type="RandomFlip", prob=0.5),
    dict(type="PhotoMetricDistortion"),
    dict(type="PackSegInputs"),
]
train_dataloader = dict(
    batch_size=4, num_workers=1, persistent_workers=True, dataset=dict(pipeline=train_pipeline)
)
val_dataloader = val_cfg = val_evaluator = None
test_dataloader = test_cfg = test_evaluator = None
default_hooks = dict(checkpoint=dict(save_best=None))
