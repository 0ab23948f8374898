"""A ResNet on your own pictures: a folder for each class, of any sizes, JPEG, PNG or WebP.

    ./launch.sh prepare image_folder --source=MY_PICTURES --dir=DATA
    ./launch.sh train configs/resnet_image_folder.py --config.data.dir=DATA --workdir=runs/mine
    ./launch.sh train configs/resnet_image_folder.py:50-v1.5,px=224 --config.data.dir=DATA --workdir=runs/mine50

px: of the squares that are seen. With train/ and val/ in the folder, val is the test split; else set
--config.data.num_test. Validation is held out of train: --config.data.num_validation.
To begin from published weights: import-weights, then --config.init.from=DIR --config.init.skip='("fc/.*",)'.

No paper's recipe: He et al. 2016's networks with SGD, cosine, random-resized crops, mirroring and smoothed labels, for
some thousand pictures. Nothing is published to compare with.
Cost: 1.8 GMAC a picture of 224 for 18 layers, a third of that at 128.
Not run here.
"""

from configs.common import base, parse, pictures


def get_config(arg=None):
    args = parse(arg, variant="18", px=128, epochs=30.0)
    config = base()
    config.model.name, config.model.variant = "models.resnet", args.variant
    config.data = pictures(
        "data.image_folder",
        num_validation=50,
        num_test=0,
        image_px=args.px,
        area_range=(0.25, 1.0),
        eval_resize_px=round(args.px * 8 / 7),
        eval_image_px=args.px,
    )
    config.augment.flip = "random"
    config.batch_size = 64
    config.num_epochs = args.epochs
    config.label_smoothing = 0.1
    config.optim.update(lr=0.05, weight_decay=5e-4, schedule="cosine", warmup_epochs=1.0)
    config.log.every_steps = 20
    return config
