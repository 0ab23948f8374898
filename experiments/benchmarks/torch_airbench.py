"""The peer's side of airbench_curve.py: tests/oracles/airbench94.py, in an environment that has torch. Reads one JSON line a
request, answers each.

Besides torch it imports numpy and the standard library only, and runs as a script.
"""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests" / "oracles"))

import numpy as np
import torch
import torch.nn.functional as F
from airbench94 import Network, Recipe, Training, initialise, logits_of_views, named, whitening

PAD = 2
VIEW_BATCH = 250


class Side:
    """A run and its pictures."""

    def begin(self, kind: str, recipe: dict, weights: str, train: str, mean: list[float], std: list[float]) -> dict:
        """A new run, from weights in a file, or drawn by itself with pictures of its own."""
        torch.manual_seed(0)
        self.mean, self.std = (np.array(value, np.float32) for value in (mean, std))
        self.recipe = Recipe(**recipe, is_muon=kind == "muon")
        network = Network(self.recipe.is_muon)
        with np.load(train) as file:
            self.images, self.labels = self.normalised(file["image"]), torch.from_numpy(file["label"].astype(np.int64))
        with torch.no_grad():
            if weights:
                with np.load(weights) as file:
                    for name, value in named(network).items():
                        if name in file:
                            order = {4: (3, 2, 0, 1), 2: (1, 0)}.get(value.dim(), (0,))
                            value.copy_(torch.from_numpy(np.ascontiguousarray(file[name].transpose(order))))
            else:
                initialise(network, self.recipe.is_muon)
                network.whiten.weight.copy_(whitening(self.images))
        self.flipped = torch.rand(len(self.images)) < 0.5  # in the first epoch, and every other one from there
        self.training = Training(network.to(memory_format=torch.channels_last), self.recipe)
        return {}

    def normalised(self, images: np.ndarray) -> torch.Tensor:
        """NHWC on 0..255 to NCHW."""
        x = (images.astype(np.float32) / 255 - self.mean) / self.std
        return torch.from_numpy(np.ascontiguousarray(x.transpose(0, 3, 1, 2)))

    def epoch(self, epoch: int, file: str) -> dict:
        """The losses of an epoch's steps, on the batches in a file, or on its own."""
        if file:
            with np.load(file) as arrays:
                batches = [
                    (self.normalised(image), torch.from_numpy(label.astype(np.int64)))
                    for image, label in zip(arrays["image"], arrays["label"], strict=True)
                ]
        else:
            batches = self.drawn(epoch)
        return {"losses": [self.training.step(images, labels).item() for images, labels in batches]}

    def drawn(self, epoch: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """An epoch's batches: flipped in turn, shifted, in an order of its own."""
        size, num = self.images.shape[2], len(self.images)
        flip = self.flipped ^ bool(epoch % 2)
        images = torch.where(flip[:, None, None, None], self.images.flip(3), self.images)
        padded = F.pad(images, (PAD,) * 4, "reflect")
        places = torch.randint(0, 2 * PAD + 1, (num, 2)).tolist()
        images = torch.stack([padded[i, :, y : y + size, x : x + size] for i, (y, x) in enumerate(places)])
        order = torch.randperm(num)[: self.recipe.steps_per_epoch * self.recipe.batch_size]
        return [(images[rows], self.labels[rows]) for rows in order.split(self.recipe.batch_size)]

    @torch.no_grad()
    def score(self, file: str) -> dict:
        """Accuracy on a file's pictures, as they are and by six views."""
        network = self.training.network.eval()
        with np.load(file) as arrays:
            images, labels = self.normalised(arrays["image"]), torch.from_numpy(arrays["label"].astype(np.int64))
        accuracy = {}
        for name, logits_of in (("plain", network), ("views", lambda x: logits_of_views(network, x))):
            logits = torch.cat([logits_of(part) for part in images.split(VIEW_BATCH)])
            accuracy[name] = (logits.argmax(1) == labels).float().mean().item()
        return {"accuracy": {name: round(value, 6) for name, value in accuracy.items()}}

    def version(self) -> dict:
        """Of torch."""
        return {"torch": torch.__version__.split("+")[0]}


def main() -> None:
    """Answers until the input ends."""
    side = Side()
    for line in sys.stdin:
        request = json.loads(line)
        print(json.dumps(getattr(side, request.pop("do"))(**request)), flush=True)


if __name__ == "__main__":
    main()
