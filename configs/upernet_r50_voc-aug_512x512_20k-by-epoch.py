"""The model zoo's 20k schedule, by epoch: UPerNet-R50 on augmented VOC 2012, global batch 16.

20,000 iterations of 16 images are 30 epochs (662 iterations each). The zoo reports 74.82 mIoU for it
(76.35 with multiple scales and flips) on 4 GPUs with 4 images each.
"""

_base_ = "./upernet_r50_voc-aug_512x512_epoch-200.py"

train_cfg = dict(max_epochs=30, val_interval=3)
# Made for 4 GPUs × 4 images; on fewer GPUs the learning rate follows the global batch.
auto_scale_lr = dict(enable=True, base_batch_size=16)
# Falls in every iteration, as the zoo's does.
param_scheduler = [
    dict(type="PolyLR", eta_min=1e-4, power=0.9, begin=0, end=30, by_epoch=True, convert_to_iter_based=True)
]
default_hooks = dict(checkpoint=dict(interval=3))
