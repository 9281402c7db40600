"""tiny.py by iteration, with what makes exact resuming hard: mixed precision, accumulation,
a moving average of the weights, dropout, loading in workers."""

_base_ = "./tiny.py"

train_dataloader = dict(num_workers=2, persistent_workers=True, sampler=dict(type="InfiniteSampler"))
optim_wrapper = dict(
    _delete_=True,
    type="AmpOptimWrapper",
    dtype="bfloat16",
    accumulative_counts=2,
    optimizer=dict(type="AdamW", lr=0.001),
    clip_grad=dict(max_norm=1.0),
)
param_scheduler = [dict(type="PolyLR", eta_min=1e-5, power=0.9, begin=0, end=18, by_epoch=False)]
train_cfg = dict(_delete_=True, type="IterBasedTrainLoop", max_iters=18, val_interval=7)
custom_hooks = [dict(type="EMAHook", momentum=0.1)]
default_hooks = dict(checkpoint=dict(by_epoch=False, interval=5), logger=dict(log_metric_by_epoch=False))
log_processor = dict(by_epoch=False)
