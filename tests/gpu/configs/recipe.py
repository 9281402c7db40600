"""The recipe at full size, from random weights. With BATON_GPU_ON=cpu narrow, on small crops."""

_base_ = "../../../configs/upernet_r50_voc-aug_512x512_epoch-200.py"

small = "{{$BATON_GPU_ON:gpu}}" == "cpu"
size = (64, 64) if small else (512, 512)
width = 4 if small else 64
channels = 8 if small else 512
model = dict(
    pretrained=None,
    data_preprocessor=dict(size=size),
    backbone=dict(base_channels=width, stem_channels=width),
    decode_head=dict(in_channels=[width * 4, width * 8, width * 16, width * 32], channels=channels),
    auxiliary_head=dict(in_channels=width * 16, channels=channels // 2),
)
train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations"),
    dict(type="RandomResize", scale=(size[0] * 4, size[1]), ratio_range=(0.5, 2.0), keep_ratio=True),
    dict(type="RandomCrop", crop_size=size, cat_max_ratio=0.75),
    dict(type="RandomFlip", prob=0.5),
    dict(type="PhotoMetricDistortion"),
    dict(type="PackSegInputs"),
]
train_dataloader = dict(
    batch_size=4, num_workers=0 if small else 4, persistent_workers=not small,
    dataset=dict(pipeline=train_pipeline),
)  # fmt: skip
val_dataloader = val_cfg = val_evaluator = None
test_dataloader = test_cfg = test_evaluator = None
default_hooks = dict(checkpoint=dict(save_best=None))
