"""tiny.py for benchmarks/ettr.py: as the recipe, 200 epochs and a save every 10. Every step is
logged, and padded to 0.2 s. Without validation."""

_base_ = "./tiny.py"

val_dataloader = val_cfg = val_evaluator = None
test_dataloader = test_cfg = test_evaluator = None
train_cfg = dict(max_epochs=200, val_interval=1000)
param_scheduler = [dict(type="PolyLR", eta_min=1e-4, power=0.9, begin=0, end=200, by_epoch=True)]
default_hooks = dict(logger=dict(interval=10), checkpoint=dict(interval=10, max_keep_ckpts=3, save_best=None))
custom_imports = dict(imports=["benchmarks.on_slurm.step_log"], allow_failed_imports=False)
custom_hooks = [dict(type="StepLog", seconds=0.2)]
