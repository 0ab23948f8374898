"""Transfer to few pictures a class, in the ways that the lectures teach: from scratch, a new head, the last block, all.

    ./launch.sh train configs/transfer.py:base,task=digits04 --workdir=runs/transfer/digits04
    ./launch.sh train configs/transfer.py:head,base=runs/transfer/digits04 --workdir=runs/transfer/head
    ./launch.sh train configs/transfer.py:unfreeze,base=runs/transfer/digits04 --workdir=runs/transfer/unfreeze
    ./launch.sh train configs/transfer.py:all,task=tiny,per_class=5,base=DIR --config.data.of.dir=TINY --workdir=runs/tiny

arm: what begins where, and what trains.
  base      the network that others begin from: from scratch, on all pictures of its task
  scratch   everything, from the seed's draw
  random    a new head on features that the seed drew and nothing trains
  head      a new head on the base's features
  block     the same, and the last block before it: F6 of LeNet-5, conv4_3 of ResNet-20
  all       everything, from the base's weights
  unfreeze  the head alone for the first third, then all at a tenth of the rate: two phases of one run
task: digits04 (LeNet-5; of the embedded digits 0 to 4), digits59 (5 to 9), digits (all ten), tiny (ResNet-20; 40 classes of
Tiny-ImageNet, shown at 32x32). All normalise their pictures alike, by the numbers of MNIST, or of CIFAR-10 (those of the
lossy copies that experiments/results/ has a record of), so that a base sees what it was trained on. per_class: training
pictures of each class, drawn by config.data.draw_seed. A run is of 120 steps (base: some 600), whatever the number of
pictures, at one rate for all arms.
"""

from configs.common import base, parse, pictures

DIGITS = dict(mean=(0.1,), std=(0.2752,))
CIFAR10 = dict(mean=(0.4916, 0.4825, 0.4469), std=(0.2453, 0.2429, 0.2608))
CLASSES = {"digits04": tuple(range(5)), "digits59": tuple(range(5, 10)), "digits": tuple(range(10)), "tiny": ()}
NUM_CLASSES = {"digits04": 5, "digits59": 5, "digits": 10, "tiny": 40}
LENET = dict(features="C[135]/.*|F6/.*", last="C[135]/.*", head="output/.*")
RESNET = dict(features="(?!fc/).*", last="(?!fc/|conv4_3/).*", head="fc/.*")
ARMS = ("base", "scratch", "random", "head", "block", "all", "unfreeze")


def get_config(arg=None):
    args = parse(arg, arm="scratch", task="digits59", per_class=20, base="", lr=0.05)
    if args.arm not in ARMS or args.task not in CLASSES:
        raise ValueError(f"arm must be one of {', '.join(ARMS)}, task one of {', '.join(CLASSES)}")
    takes = args.arm in ("head", "block", "all", "unfreeze")
    if takes and not args.base:
        raise ValueError(f"{args.arm} begins from another run: base=DIR names its workdir")
    is_tiny, is_base = args.task == "tiny", args.arm == "base"
    config = base()
    if is_tiny:
        config.model.update(name="models.resnet", variant="cifar20")
        of = pictures("data.tiny_imagenet", num_validation=400, image_px=32, eval_resize_px=32, eval_image_px=32)
        config.augment.flip = "random"
    else:
        config.model.update(name="models.lenet", variant="modern")
        of = dict(name="data.digits", digit_px=28)
        config.augment.update(max_shift_px=2.0, max_rotation_deg=10.0, scale_range=(0.9, 1.1))
    per_class, num_steps = (0, 600) if is_base else (args.per_class, 120)
    config.data = dict(name="data.altered", of=of, classes=CLASSES[args.task], num_per_class=per_class, draw_seed=0)
    config.data.update(crop_px=0, num_train=0, permute_seed=-1, **(CIFAR10 if is_tiny else DIGITS))
    num_pictures = NUM_CLASSES[args.task] * (per_class or 100)
    config.batch_size = 40 if is_tiny else 5 * NUM_CLASSES[args.task]
    config.num_epochs = num_steps / (num_pictures // config.batch_size)
    config.optim.update(lr=args.lr, weight_decay=5e-4, schedule="cosine")
    names = RESNET if is_tiny else LENET
    if takes:
        config.init.update({"from": args.base, "skip": (names["head"],)})
    if args.arm in ("random", "head", "unfreeze"):
        config.freeze.patterns = (names["features"],)
    if args.arm == "block":
        config.freeze.patterns = (names["last"],)
    if is_tiny and args.arm in ("head", "block", "unfreeze"):  # what is random has no statistics worth to keep
        config.freeze.batch_stats = (names["last" if args.arm == "block" else "features"],)
    if args.arm == "unfreeze":
        third = config.num_epochs / 3
        config.phases = (
            (third, "freeze.patterns", ()),
            (third, "freeze.batch_stats", ()),
            (third, "optim.lr", args.lr / 10),
        )
    config.eval.every_epochs = config.checkpoint.every_epochs = config.num_epochs
    config.log.update(every_steps=num_steps, use_tensorboard=False)
    return config
