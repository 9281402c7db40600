"""The network of tiny.py as a config in pure Python: types are classes."""

from mmengine.hooks import CheckpointHook, LoggerHook
from mmengine.visualization import LocalVisBackend
from mmseg.models import CrossEntropyLoss, EncoderDecoder, SegDataPreProcessor
from mmseg.models.backbones import ResNetV1c
from mmseg.visualization import SegLocalVisualizer
from torch.nn import BatchNorm2d

default_scope = None
size = (32, 32)
norm = dict(type=BatchNorm2d)
model = dict(
    type=EncoderDecoder,
    data_preprocessor=dict(
        type=SegDataPreProcessor,
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        pad_val=0,
        seg_pad_val=255,
        size=size,
    ),
    backbone=dict(
        type=ResNetV1c,
        depth=18,
        base_channels=8,
        stem_channels=8,
        num_stages=2,
        out_indices=(0, 1),
        strides=(1, 2),
        dilations=(1, 1),
        norm_cfg=norm,
    ),
    decode_head=dict(
        in_channels=16,
        in_index=1,
        channels=8,
        num_convs=1,
        concat_input=False,
        dropout_ratio=0.1,
        num_classes=21,
        norm_cfg=norm,
        align_corners=False,
        loss_decode=dict(type=CrossEntropyLoss),
    ),
    test_cfg=dict(mode="whole"),
)
default_hooks = dict(
    logger=dict(type=LoggerHook, interval=1),
    checkpoint=dict(type=CheckpointHook, interval=2, by_epoch=False, save_best="mIoU", max_keep_ckpts=2),
)
env_cfg = dict(mp_cfg=dict(mp_start_method="fork", opencv_num_threads=0))
visualizer = dict(type=SegLocalVisualizer, vis_backends=[dict(type=LocalVisBackend)], name="visualizer")
