"""The peer's side of input.py: a PyTorch DataLoader with torchvision's transforms, in an environment of its own.

Reads one JSON line a request, answers each. Besides torch, torchvision and Pillow it imports the standard library only, and
runs as a script. Pictures are opened by Pillow, as torchvision.datasets.ImageFolder does by default.
"""

import importlib.util
import io
import itertools
import json
import os
import re
import sys
import time
from pathlib import Path

import numpy as np
import PIL
import torch
from input_sides import IMAGE_PX, MEAN, RESIZE_PX, STD, picture_files, time_batches
from PIL import Image


def import_transforms():
    """torchvision.transforms, also where torchvision's wheel was built for another PyTorch than is here (CUDA's, say).

    It declares what its compiled operators give and so needs their names; these transforms use none of them.
    """
    origin = importlib.util.find_spec("torchvision").origin
    try:
        import torchvision
    except RuntimeError:
        library = torch.library.Library("torchvision", "DEF")
        declared = Path(origin).with_name("_meta_registrations.py").read_text()
        for name in sorted(set(re.findall(r'register_fake\("torchvision::(\w+)"', declared))):
            library.define(f"{name}(Tensor x) -> Tensor")
        for module in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[module]
        import torchvision
    import torchvision.transforms

    return torchvision.__version__, torchvision.transforms


TORCHVISION, transforms = import_transforms()
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
PREFETCH = 2  # batches a worker; PyTorch's default


def open_picture(file):
    """As torchvision's pil_loader."""
    return Image.open(file).convert("RGB")


class Files(torch.utils.data.Dataset):
    """As ImageFolder: a file, opened and transformed."""

    def __init__(self, files):
        self.files = files
        self.transform = transforms.Compose(
            [
                transforms.RandomResizedCrop(IMAGE_PX),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize(MEAN, STD),
            ]
        )

    def __len__(self):
        return len(self.files)

    def __getitem__(self, index):
        with self.files[index].open("rb") as file:
            return self.transform(open_picture(file)), index % 1000


class Endless(torch.utils.data.Sampler):
    """Permutations without end, so that the workers live on from turn to turn."""

    def __init__(self, count):
        self.count = count

    def __iter__(self):
        return itertools.chain.from_iterable(torch.randperm(self.count).tolist() for _ in itertools.count())


def make_loader(files, batch_size, num_workers):
    """next_batch() and the number of batches that it holds ready."""
    loader = torch.utils.data.DataLoader(
        Files(files), batch_size, sampler=Endless(len(files)), num_workers=num_workers, pin_memory=DEVICE == "cuda"
    )
    batches = iter(loader)
    return (lambda: next(batches)), PREFETCH * num_workers


def to_device(batch):
    """The batch where a network would read it."""
    return [tensor.to(DEVICE, non_blocking=True) for tensor in batch]


def wait(batch):
    """Until the batch is there."""
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    return batch


def main() -> None:
    """Answers requests until the input ends."""
    torch.set_num_threads(1)
    crop = transforms.RandomResizedCrop(IMAGE_PX)
    evaluation = transforms.Compose([transforms.Resize(RESIZE_PX), transforms.CenterCrop(IMAGE_PX)])
    files, contents, next_batch, drain = [], [], None, 0
    for line in sys.stdin:
        request = json.loads(line)
        if request["do"] == "facts":
            answer = {
                "torch": torch.__version__,
                "torchvision": TORCHVISION,
                "pillow": PIL.__version__,
                "device": DEVICE,
            }
        elif request["do"] == "pictures":
            files = picture_files(request["folder"])
            contents = [path.read_bytes() for path in files[: request["count"]]]
            answer = {"files": len(files)}
        elif request["do"] == "evaluation":  # as it shows the first pictures, for comparison
            shown = [np.asarray(evaluation(open_picture(io.BytesIO(data)))) for data in contents[: request["count"]]]
            np.save(request["file"], np.stack(shown))
            answer = {}
        elif request["do"] == "loader":
            next_batch = None  # ends the workers of the one before
            next_batch, drain = make_loader(files, request["batch_size"], request["num_workers"])
            wait(to_device(next_batch()))
            answer = {}
        elif request["do"] == "time batches":
            answer = {"seconds": time_batches(next_batch, to_device, wait, drain, request["calls"], os.getpid())}
        else:  # time pictures, one after another
            show = open_picture if request["stage"] == "decode" else lambda file: crop(open_picture(file))
            begin = time.perf_counter()
            for _ in range(request["calls"]):
                for data in contents:
                    show(io.BytesIO(data))
            answer = {"seconds": (time.perf_counter() - begin) / request["calls"]}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
