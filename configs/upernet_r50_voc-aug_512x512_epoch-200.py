"""UPerNet-R50 on augmented VOC 2012, 512×512, 200 epochs: the recipe for `--nodes 1 --gpus 2`.

Inherits the installed MMSegmentation's own config and says here only what differs, and why.
"""

_base_ = "mmseg::upernet/upernet_r50_4xb4-20k_voc12aug-512x512.py"

# From scratch, ResNetV1c's own ImageNet weights: data/pretrained/resnet50_v1c-2cccc1ad.pth. (torchvision's
# resnet50 has another stem, which would stay random; jobs/catalog/pretrained.py refuses it.)

# One list and one folder of masks with all 10,582 images: what `prepare` has verified is what is read.
train_dataloader = dict(
    batch_size=4,
    num_workers=4,
    sampler=dict(_delete_=True, type="DefaultSampler", shuffle=True),
    dataset=dict(
        _delete_=True,
        type="PascalVOCDataset",
        data_root="data/VOCdevkit/VOC2012",
        data_prefix=dict(img_path="JPEGImages", seg_map_path="SegmentationClassAug"),
        ann_file="ImageSets/Segmentation/trainaug.txt",
        pipeline={{_base_.train_pipeline}},
    ),
)

train_cfg = dict(_delete_=True, type="EpochBasedTrainLoop", max_epochs=200, val_interval=10)

# SyncBN is on, as in the zoo. Mixed precision, channels_last, torch.compile and a fused optimizer are off:
# docs/gpu-options.md says why, and how to have them.
# 0.01 is for a global batch of 16, as in the zoo; it is scaled in proportion: 0.005 on 2 GPUs with 4
# images each.
optim_wrapper = dict(optimizer=dict(type="SGD", lr=0.01, momentum=0.9, weight_decay=0.0005))
auto_scale_lr = dict(enable=True, base_batch_size=16)
param_scheduler = [dict(type="PolyLR", eta_min=1e-4, power=0.9, begin=0, end=200, by_epoch=True)]

default_hooks = dict(
    logger=dict(type="LoggerHook", interval=50, log_metric_by_epoch=True),
    # The best by mIoU is kept beside these; so is a recent one by time, whatever the interval here.
    checkpoint=dict(
        _delete_=True,
        type="CheckpointHook",
        by_epoch=True,
        interval=10,
        max_keep_ckpts=3,
        save_best="mIoU",
    ),
)
log_processor = dict(by_epoch=True)
visualizer = dict(
    vis_backends=[dict(type="LocalVisBackend"), dict(type="TensorboardVisBackend")],
)
