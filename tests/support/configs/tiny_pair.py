"""The tiny network on the two lists that the pascal_voc12_aug.py of MMSegmentation reads, train and aug."""

_base_ = "./tiny.py"

dataset = dict(
    type="PascalVOCDataset", data_root="data/VOCdevkit/VOC2012", pipeline={{_base_.train_pipeline}}
)
train_dataloader = dict(
    dataset=dict(
        _delete_=True,
        type="ConcatDataset",
        datasets=[
            dict(
                data_prefix=dict(img_path="JPEGImages", seg_map_path="SegmentationClass"),
                ann_file="ImageSets/Segmentation/train.txt",
                **dataset,
            ),
            dict(
                data_prefix=dict(img_path="JPEGImages", seg_map_path="SegmentationClassAug"),
                ann_file="ImageSets/Segmentation/aug.txt",
                **dataset,
            ),
        ],
    ),
)
train_cfg = dict(max_epochs=1, val_interval=1)
