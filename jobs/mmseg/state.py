"""Collects the state of a training for a checkpoint, and restores it.

The layout is mmengine's (meta, state_dict, optimizer, param_schedulers, message_hub, and what hooks add), so
that its tools can read the file; `baton` holds what mmengine leaves out. Everything is tensors and plain
Python values, so loading a file cannot run code from it.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import mmengine
import numpy as np
import torch
from mmengine.logging import HistoryBuffer
from mmengine.model import is_model_wrapper
from mmengine.optim import OptimWrapper, OptimWrapperDict
from torch.nn.modules.batchnorm import _BatchNorm

from jobs.engine import distributed, safe_load, storable
from jobs.engine.session import Session
from jobs.engine.snapshots import Snapshots, plain
from jobs.mmseg import kept, schedules
from jobs.mmseg.model import put
from jobs.mmseg.reach import remembers
from jobs.run.errors import UserError

Tree = Any

HOOK_STATE = {"EarlyStoppingHook": ("wait_count", "best_score")}
"""State that mmengine's hooks do not save. Hooks with state_dict and load_state_dict save their own."""


def bare(model: Any) -> Any:
    return model.module if is_model_wrapper(model) else model


def networks(runner: Any) -> dict[str, Any]:
    """The model and its averaged copies in hooks (EMAHook), by the prefix of their names."""
    found = {"": bare(runner.model)}
    for hook in runner.hooks:
        if isinstance(averaged := getattr(hook, "ema_model", None), torch.nn.Module):
            found[f"averaged.{len(found) - 1}."] = averaged
    return found


def kept_by(runner: Any) -> kept.Kept:
    """Starts following what the model and the user's hooks and optimizers keep beside the weights."""
    optimizers = [
        part
        for one in wrappers(runner.optim_wrapper)
        for part in (one, one.optimizer, *kept.inner(one.optimizer))
    ]
    named = [(f"{type(one).__name__}/{number}", one) for number, one in enumerate(optimizers)]
    known = [runner, runner.model, runner.message_hub, runner.train_loop, runner.train_dataloader]
    known += [runner.optim_wrapper, runner.visualizer, *schedules.flat(runner.param_schedulers)]
    known += [*optimizers, *runner.hooks]
    owners = [*named_hooks(runner), ("Runner", runner)]
    return kept.Kept(networks(runner), owners, named, known, runner.train_dataloader.dataset.dataset)


# ---------------------------------------------------------------------------------------------- collecting


def collect(runner: Any, session: Session, manifest: dict[str, Any]) -> Tree | None:
    """The whole state at a step boundary, on rank 0; None on the others. All ranks must call it.

    The tensors are the live ones: `snapshot` them before the next step.
    """
    kept.check_groups(runner.groups, kept.groups(wrappers(runner.optim_wrapper)))
    own = runner.kept.state()
    locals_ = gather_local(runner, session, own)
    if not session.main:
        return None
    loop = runner.train_loop
    checkpoint: Tree = {
        "meta": {
            "epoch": loop.epoch,
            "iter": loop.iter,
            "seed": runner.seed,
            "cfg": runner.cfg.pretty_text,
            "experiment_name": runner.experiment_name,
            "time": time.strftime("%Y%m%d_%H%M%S"),
            "mmengine_version": mmengine.__version__,
            "dataset_meta": plain(getattr(runner.train_dataloader.dataset, "metainfo", {})),
        },
        "state_dict": kept.weights(bare(runner.model)),
        "message_hub": hub_state(runner.message_hub),
        "optimizer": runner.optim_wrapper.state_dict(),
        "baton": {
            **manifest,
            "history": history(runner.message_hub),
            "ranks": locals_,
            "hooks": hook_state(runner),
            "updates": updates(runner),
            "evolved": schedules.evolved(runner.param_schedulers, runner.schedules),
            "kept": own,
            # The model's own are in `state_dict`.
            "left_out": {key: kept.left_out(one) for key, one in networks(runner).items() if key},
            "inner": [
                [one.state_dict() for one in kept.inner(w.optimizer)] for w in wrappers(runner.optim_wrapper)
            ],
            "stop_training": bool(loop.stop_training),
        },
    }
    schedulers = runner.param_schedulers
    # Other than plain values, such as functions, come from the config (see EVOLVING).
    if isinstance(schedulers, dict):
        checkpoint["param_schedulers"] = {
            k: [plain(s.state_dict()) for s in v] for k, v in schedulers.items()
        }
    elif schedulers is not None:
        checkpoint["param_schedulers"] = [plain(s.state_dict()) for s in schedulers]
    kept.check_names(runner.built, checkpoint["state_dict"])
    whole = checkpoint["state_dict"].copy()
    runner.call_hook("before_save_checkpoint", checkpoint=checkpoint)
    kept.check_weights(whole, checkpoint["state_dict"])
    checkpoint["meta"] = plain(checkpoint["meta"])  # only for people to read
    runner.kept.say_lost()
    return checkpoint


def gather_local(runner: Any, session: Session, own: Tree) -> list[Tree]:
    """What differs between ranks, as a list by rank (on rank 0; [] on others): running statistics of batch
    norms that are not synchronised, what is kept (`own`; rank 0's is saved elsewhere), and gradients."""
    mine: Tree = {}
    gradients: Tree = runner.kept.gradients()
    if session.ranks > 1:
        mine["statistics"] = {name: tensor.cpu() for name, tensor in statistics(runner).items()}
        # Hidden networks, optimizers and gradients are sent only where they differ from rank 0's.
        heavy: Tree = {kind: own[kind] for kind in kept.HEAVY} | {"gradients": gradients}
        marks = distributed.everywhere(session, kept.marks(heavy) if session.main else None)
        if not session.main:
            missing = dict.fromkeys(marks["gradients"].keys() - gradients.keys())
            its = kept.differing(heavy, marks)
            gradients = its.pop("gradients") | missing
            mine["kept"] = own | its
    if gradients:
        mine["gradients"] = gradients
    if session.ranks == 1:
        return [mine] if mine else []
    # Rank 0 does not send its own, since every rank sends as many bytes as the largest.
    others = distributed.gather(session, {} if session.main else mine)
    return [mine, *others[1:]] if others else []


def statistics(runner: Any) -> dict[str, torch.Tensor]:
    """Running means and variances that may differ between ranks (those of SyncBN are equal)."""
    found = {}
    for prefix, network in networks(runner).items():
        for name, module in network.named_modules():
            if isinstance(module, _BatchNorm) and not isinstance(module, torch.nn.SyncBatchNorm):
                for key in ("running_mean", "running_var"):
                    if getattr(module, key) is not None:
                        found[f"{prefix}{name}.{key}"] = getattr(module, key)
    return found


def average_statistics(runner: Any, session: Session) -> None:
    """Sets the running statistics of all ranks to their mean, before a validation and at the end of an epoch.

    So all ranks validate the same network, which is also the one in the checkpoint.
    """
    tensors = list(statistics(runner).values()) if session.ranks > 1 else []
    if not tensors:
        return
    flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
    torch.distributed.all_reduce(flat)
    flat /= session.ranks
    for tensor, mean in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(mean.view_as(tensor))


def wrappers(optim_wrapper: OptimWrapper | OptimWrapperDict) -> list[OptimWrapper]:
    return list(optim_wrapper.values()) if isinstance(optim_wrapper, OptimWrapperDict) else [optim_wrapper]


def updates(runner: Any) -> list[int]:
    """How many losses each of several optimizers has seen (for gradient accumulation), counted as if each
    iteration had one round. For a single optimizer, mmengine computes it from the iteration."""
    if not isinstance(runner.optim_wrapper, OptimWrapperDict):
        return []
    rounds = runner.train_loop.batches.sampler.rounds
    return [wrapper._inner_count // rounds for wrapper in wrappers(runner.optim_wrapper)]


def hub_state(hub: Any) -> Tree:
    """The message hub without the text of the config and without its histories, whose class could not be
    loaded without running code: see `history`."""
    info = {
        key: value.item() if isinstance(value, np.generic) else value
        for key, value in hub.runtime_info.items()
        if hub._resumed_keys.get(key) and key != "cfg"
    }
    for key in info:
        # Not needed exactly: dataset_meta comes from the dataset, the others are results of validations.
        if key == "dataset_meta" or key.startswith(("val/", "test/")):
            info[key] = plain(info[key])
    return {"log_scalars": {}, "runtime_info": info, "resumed_keys": dict.fromkeys(info, True)}


def history(hub: Any) -> Tree:
    """Logged values and their counts, by key: two float64 tensors, of at most the buffer's length."""
    return {
        key: [torch.from_numpy(np.array(part, dtype=np.float64)) for part in buffer.data]
        for key, buffer in hub.log_scalars.items()
        if hub._resumed_keys.get(key)
    }


def hook_state(runner: Any) -> Tree:
    """The state of hooks, by key. Raises UserError for what could not be restored."""
    found: Tree = {}
    for key, hook in named_hooks(runner):
        kept = HOOK_STATE.get(type(hook).__name__)
        if remembers(hook):
            found[key] = hook.state_dict()
            storable.check(found[key], f"{type(hook).__name__}.state_dict()")
        elif kept:
            found[key] = {name: plain(getattr(hook, name)) for name in kept if hasattr(hook, name)}
    return found


def check_hooks(runner: Any) -> None:
    """Raises UserError, before the first step, if the state of a hook or of the message hub could not be
    restored."""
    try:
        hook_state(runner)
        Snapshots().take({"message_hub": hub_state(runner.message_hub)})
    except UserError:
        raise
    except Exception:
        return  # a hook without state before the first step: the first save checks again


def named_hooks(runner: Any) -> Iterator[tuple[str, Any]]:
    """Every hook with its key in a checkpoint: its class and its number among the hooks of that class."""
    counts: Counter[str] = Counter()
    for hook in runner.hooks:
        name = type(hook).__name__
        yield f"{name}/{counts[name]}", hook
        counts[name] += 1


# ----------------------------------------------------------------------------------------------- restoring


def restore(runner: Any, session: Session, path: str) -> Tree:
    """Loads a checkpoint into a newly built runner. Returns what remains to be done: whether there is a
    `validation_due` at that step; and what to restore once everything is built, in `kept` and `gradients`.

    The number of ranks may differ from that of the save. Raises RuntimeError if the model has changed,
    UserError if the checkpoint holds more than data.
    """
    checkpoint = safe_load.load_own(path)
    # Hooks (EMA) take their part, and swap weights, before the model is loaded.
    runner.call_hook("after_load_checkpoint", checkpoint=checkpoint)
    missing, unknown = put(bare(runner.model), checkpoint["state_dict"])
    if missing or unknown:
        raise RuntimeError(f"the model has changed: {path} lacks {missing[:3]} and has {unknown[:3]} instead")
    own = checkpoint["baton"]
    kept.put_left_out(networks(runner), own.get("left_out", {}))
    loop = runner.train_loop
    loop._epoch, loop._iter = checkpoint["meta"]["epoch"], checkpoint["meta"]["iter"]
    loop.stop_training = own["stop_training"]
    # Cloned, because the file is memory-mapped: a tensor that stays would keep its space on the disk after
    # the file is deleted.
    runner.message_hub.load_state_dict(cloned(checkpoint["message_hub"]))
    for key, (values, counts) in own["history"].items():
        runner.message_hub.log_scalars[key] = HistoryBuffer(values.tolist(), counts.tolist())
        runner.message_hub._resumed_keys[key] = True
    saved = checkpoint.get("param_schedulers")
    evolved = own.get("evolved", ())
    replayed = schedules.changed(runner.param_schedulers, saved, evolved) and schedules.replay(runner)
    values = [[dict(group) for group in w.param_groups] for w in wrappers(runner.optim_wrapper)]
    # Checkpoints of earlier versions have no `inner`, `updates`, `kept` and `left_out`.
    inner = cloned(own.get("inner", []))
    optimizers = wrappers(runner.optim_wrapper)
    kept.load_optimizers(runner.optim_wrapper, optimizers, cloned(checkpoint["optimizer"]), inner)
    if replayed:
        names = {"lr", *(one.param_name for one in schedules.flat(runner.param_schedulers))}
        for wrapper, groups in zip(wrappers(runner.optim_wrapper), values, strict=True):
            for group, new in zip(wrapper.param_groups, groups, strict=True):
                group.update({name: new[name] for name in names if name in new})
    else:
        schedules.restore(runner.param_schedulers, saved, evolved)
    for wrapper, count in zip(wrappers(runner.optim_wrapper), own.get("updates", ()), strict=False):
        wrapper._inner_count = count
    _restore_hooks(runner, cloned(own["hooks"]))
    _restore_local(runner, session, own["ranks"])
    its = own["ranks"][session.rank] if len(own["ranks"]) == session.ranks else {}
    return {
        "validation_due": own["validation_due"],
        "kept": kept.of_rank(own.get("kept", {}), its.get("kept", {})),
        "gradients": _gradients(session, own["ranks"]),
    }


def _restore_hooks(runner: Any, saved: Tree) -> None:
    for key, hook in named_hooks(runner):
        state = saved.get(key)
        if state is None:
            continue
        if hasattr(hook, "load_state_dict"):
            hook.load_state_dict(state)
        else:
            for name, value in state.items():
                setattr(hook, name, value)


def _restore_local(runner: Any, session: Session, ranks: list[Tree]) -> None:
    if not ranks:
        return
    same = len(ranks) == session.ranks
    if ranks[0].get("statistics"):
        for name, tensor in statistics(runner).items():
            saved = [rank["statistics"][name] for rank in ranks if name in rank["statistics"]]
            if saved:
                tensor.copy_(saved[session.rank] if same else torch.stack(saved).mean(0))


def _gradients(session: Session, ranks: list[Tree]) -> dict[str, torch.Tensor | None]:
    of_rank = [{**ranks[0].get("gradients", {}), **rank.get("gradients", {})} for rank in ranks]
    if len(ranks) == session.ranks:
        return of_rank[session.rank]
    found: dict[str, torch.Tensor | None] = {}
    for name in {name for one in of_rank for name in one}:
        # Another number of ranks: each takes the mean, so that the reduction gives the same. A rank without a
        # gradient counts as 0, as it does there.
        if those := [one[name] for one in of_rank if one.get(name) is not None]:
            found[name] = torch.stack(those).sum(0) / len(of_rank)
    return found


def cloned(tree: Tree) -> Tree:
    if isinstance(tree, torch.Tensor):
        return tree.clone()
    if type(tree) in storable.MAPPINGS:
        return type(tree)({key: cloned(value) for key, value in tree.items()})
    if isinstance(tree, (list, tuple)):
        return type(tree)(cloned(value) for value in tree)
    return tree
