"""Evaluating a run: mIoU, mAcc, aAcc, the per-class table, the confusion matrix, pictures."""
