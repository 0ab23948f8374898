"""The peer's side of gpu_airbench.py: whole runs of tests/oracles/airbench94.py on the device, compiled. Reads one JSON line
a request, answers each.

On a GPU convolutions and the output hold half precision and normalisations float32, as the recipe's author has them.
Pictures lie on the device; an epoch's are flipped, shifted and shuffled there. Besides torch it imports numpy and the
standard library only.
"""

import json
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests" / "oracles"))

import numpy as np
import torch
import torch.nn.functional as F
from airbench94 import Network, Recipe, Training, initialise, logits_of_views, whitening

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPE = torch.float16 if DEVICE == "cuda" else torch.float32
PAD, WHITENED = 2, 5000


class Side:
    """The pictures, and one network that each run begins anew, so that it is compiled once."""

    def load(self, file, mean, std, kind, steps_per_epoch, num_steps, batch_size, views_batch, mode) -> dict:
        """Pictures from a file; mode is torch.compile's, "" for eager."""
        mean, std = (torch.tensor(value, device=DEVICE).view(1, -1, 1, 1) for value in (mean, std))
        self.splits = {}
        with np.load(file) as arrays:
            for split in ("train", "test"):
                x = torch.from_numpy(arrays[f"{split}_image"]).to(DEVICE).permute(0, 3, 1, 2)
                x = ((x.float() / 255 - mean) / std).to(DTYPE).contiguous(memory_format=torch.channels_last)
                self.splits[split] = x, torch.from_numpy(arrays[f"{split}_label"].astype(np.int64)).to(DEVICE)
        self.recipe = Recipe(steps_per_epoch, num_steps, batch_size, kind == "muon")
        self.views_batch = views_batch
        self.network = Network(self.recipe.is_muon).to(DEVICE, DTYPE, memory_format=torch.channels_last)
        for module in self.network.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.float()
        if mode:
            self.network.compile(mode=None if mode == "default" else mode)
        return {"torch": torch.__version__, "dtype": str(DTYPE)}

    def run(self, seed: int) -> dict:
        """Seconds from first weights to the score of the test pictures, and that score."""
        torch.manual_seed(seed)
        synchronise()
        begin = time.perf_counter()
        images, labels = self.splits["train"]
        for parameter in self.network.parameters():
            parameter.requires_grad_(True)
        for module in self.network.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.weight.requires_grad_(False)
        self.network.whiten.weight.requires_grad_(False)
        initialise(self.network, self.recipe.is_muon)
        with torch.no_grad():
            self.network.whiten.weight.copy_(whitening(images[:WHITENED].float()))
        training = Training(self.network, self.recipe)
        flipped = torch.rand(len(images), device=DEVICE) < 0.5
        losses, epoch = [], 0
        while training.done < self.recipe.num_steps:
            varied = vary(images, flipped ^ bool(epoch % 2))
            order = torch.randperm(len(images), device=DEVICE)
            left = self.recipe.num_steps - training.done
            for rows in order.split(self.recipe.batch_size)[: min(self.recipe.steps_per_epoch, left)]:
                losses.append(training.step(varied[rows], labels[rows]))
            epoch += 1
        accuracy = self.score()
        synchronise()
        return {
            "seconds": time.perf_counter() - begin,
            "accuracy": accuracy,
            "first_loss": losses[0].item(),
            "last_loss": losses[-1].item(),
        }

    @torch.no_grad()
    def score(self) -> float:
        """Of the test pictures, by six views."""
        images, labels = self.splits["test"]
        parts = zip(images.split(self.views_batch), labels.split(self.views_batch), strict=True)
        correct = [(logits_of_views(self.network, x).argmax(1) == y).sum() for x, y in parts]
        return (sum(correct) / len(labels)).item()


def vary(images, flip):
    """Pictures mirrored where `flip`, then shifted by up to PAD, their edges reflected."""
    size = images.shape[2]
    padded = F.pad(torch.where(flip[:, None, None, None], images.flip(3), images), (PAD,) * 4, "reflect")
    places = torch.randint(0, 2 * PAD + 1, (len(images), 2), device=images.device)
    varied = torch.empty_like(images)
    for y in range(2 * PAD + 1):
        for x in range(2 * PAD + 1):
            here = (places[:, 0] == y) & (places[:, 1] == x)
            varied[here] = padded[here, :, y : y + size, x : x + size]
    return varied


def synchronise() -> None:
    """Waits until the device has done all."""
    if DEVICE == "cuda":
        torch.cuda.synchronize()


def main() -> None:
    """Answers requests until the input ends."""
    torch.backends.cudnn.benchmark = True
    side = Side()
    for line in sys.stdin:
        request = json.loads(line)
        print(json.dumps(getattr(side, request.pop("do"))(**request)), flush=True)


if __name__ == "__main__":
    main()
