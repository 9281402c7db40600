"""A small UPerNet for `make demo`: learns the generated pictures in a minute or two on two CPU cores.

The recipe's pipeline, schedule and heads, at an eighth of the size, from random weights.
"""

_base_ = "./upernet_r50_voc-aug_512x512_epoch-200.py"

crop_size = (96, 96)
scale = (192, 96)
norm_cfg = dict(type="SyncBN", requires_grad=True)

train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations"),
    dict(type="RandomResize", scale=scale, ratio_range=(0.75, 1.5), keep_ratio=True),
    dict(type="RandomCrop", crop_size=crop_size, cat_max_ratio=0.75),
    dict(type="RandomFlip", prob=0.5),
    dict(type="PhotoMetricDistortion"),
    dict(type="PackSegInputs"),
]
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="Resize", scale=scale, keep_ratio=True),
    dict(type="LoadAnnotations"),
    dict(type="PackSegInputs"),
]

model = dict(
    pretrained=None,
    data_preprocessor=dict(size=crop_size),
    backbone=dict(depth=18, base_channels=16, stem_channels=16, norm_cfg=norm_cfg),
    decode_head=dict(in_channels=[16, 32, 64, 128], channels=32, norm_cfg=norm_cfg),
    auxiliary_head=dict(in_channels=64, channels=32, norm_cfg=norm_cfg),
)

train_dataloader = dict(
    batch_size=4, num_workers=1, persistent_workers=True, dataset=dict(pipeline=train_pipeline)
)
val_dataloader = dict(num_workers=1, persistent_workers=True, dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader

train_cfg = dict(max_epochs=40, val_interval=10)
optim_wrapper = dict(
    _delete_=True,
    type="OptimWrapper",
    optimizer=dict(type="AdamW", lr=2e-3, weight_decay=0.01),
)
param_scheduler = [
    dict(type="PolyLR", eta_min=1e-5, power=0.9, begin=0, end=40, by_epoch=True, convert_to_iter_based=True)
]
default_hooks = dict(logger=dict(interval=5), checkpoint=dict(interval=10))
