"""A small SegFormer, with AdamW."""

_base_ = "./recipe.py"

model = dict(
    _delete_=True,
    type="EncoderDecoder",
    data_preprocessor=dict(
        type="SegDataPreProcessor",
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        pad_val=0,
        seg_pad_val=255,
        size={{_base_.size}},
    ),
    backbone=dict(
        type="MixVisionTransformer",
        embed_dims=8,
        num_layers=[1, 1, 1, 1],
        num_heads=[1, 2, 2, 4],
        drop_path_rate=0.1,
    ),
    decode_head=dict(
        type="SegformerHead",
        in_channels=[8, 16, 16, 32],
        in_index=[0, 1, 2, 3],
        channels=16,
        dropout_ratio=0.1,
        num_classes=21,
        norm_cfg=dict(type="BN", requires_grad=True),
        align_corners=False,
        loss_decode=dict(type="CrossEntropyLoss"),
    ),
    test_cfg=dict(mode="whole"),
)
optim_wrapper = dict(
    _delete_=True, type="OptimWrapper", optimizer=dict(type="AdamW", lr=6e-5, weight_decay=0.01)
)
