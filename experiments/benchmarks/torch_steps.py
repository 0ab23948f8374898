"""The peer's side of cpu.py and gpu.py: training steps and inference in PyTorch. One JSON line a request, one an answer.

Besides torch it imports numpy and the standard library only, and runs as a script.
"""

import json
import sys
import time

import numpy as np
import torch
import torch.nn.functional as F
from torch_networks import NETWORKS, set_weights

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
NUM_BATCHES = 4  # taken in turn, so that no cache serves one batch


class Side:
    """A network, its optimiser, and batches that lie on the device."""

    def make(self, network, weights, batches, mean, std, lr, momentum, dropout, dtype, mode) -> dict:
        """Takes over weights and batches from files. mode: "" is eager, else of torch.compile."""
        self.network = NETWORKS[network]()
        if hasattr(self.network, "dropout"):
            self.network.dropout = dropout
        with np.load(weights) as file:
            set_weights(self.network, file)
        self.network.to(DEVICE, memory_format=torch.channels_last)
        options = {"fused": True} if DEVICE == "cuda" else {}
        self.optimizer = torch.optim.SGD(self.network.parameters(), lr=lr, momentum=momentum, **options)
        self.mean, self.std = (torch.tensor(value, device=DEVICE).view(1, -1, 1, 1) for value in (mean, std))
        with np.load(batches) as file:
            pairs = zip(file["image"], file["label"], strict=True)
            self.batches = [
                (self.picture(image), torch.from_numpy(label.astype(np.int64)).to(DEVICE)) for image, label in pairs
            ]
        self.autocast, self.next = dtype == "bfloat16", 0
        self.forward = torch.compile(self.loss, mode=None if mode == "default" else mode) if mode else self.loss
        self.graph = None
        return {}

    def picture(self, image):
        """uint8 (n, h, w, c) as PyTorch's (n, c, h, w), channels last in memory as ours."""
        return torch.from_numpy(image).to(DEVICE).permute(0, 3, 1, 2)

    def logits(self, images):
        """Of pictures on 0..255."""
        x = (images.float() / 255 - self.mean) / self.std
        with torch.autocast(DEVICE, torch.bfloat16, enabled=self.autocast):
            return self.network(x.contiguous(memory_format=torch.channels_last)).float()

    def loss(self, images, labels):
        """Of a batch."""
        return F.cross_entropy(self.logits(images), labels)

    def step(self):
        """One update; the loss before it, on the device."""
        images, labels = self.batches[self.next % len(self.batches)]
        self.next += 1
        loss = self.forward(images, labels)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        return loss.detach()

    def infer(self):
        """The probabilities of a batch."""
        images, _ = self.batches[self.next % len(self.batches)]
        self.next += 1
        with torch.inference_mode():
            return F.softmax(self.logits(images), -1)

    def losses(self, steps) -> dict:
        """Those of the next steps."""
        self.network.train()
        return {"losses": [self.step().item() for _ in range(steps)]}

    def probabilities(self) -> dict:
        """Of the first batch, each row's first few."""
        self.network.eval()
        self.next = 0
        return {"probabilities": self.infer()[:, :5].tolist()}

    def time(self, what, calls) -> dict:
        """Seconds a call of `step` or `infer`."""
        self.network.train(what == "step")
        call = getattr(self, what)
        synchronise()
        begin = time.perf_counter()
        for _ in range(calls):
            call()
        synchronise()
        return {"seconds": (time.perf_counter() - begin) / calls}

    def facts(self) -> dict:
        """What this side runs on."""
        device = torch.cuda.get_device_name() if DEVICE == "cuda" else "cpu"
        return {"torch": torch.__version__, "device": device, "threads": torch.get_num_threads()}


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
