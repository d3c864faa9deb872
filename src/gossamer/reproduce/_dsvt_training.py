"""Pillar detectors trained on LiDAR-like scenes: DSVT, its ablation, and convolutions alone."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from statistics import fmean

import torch

from gossamer.data.lidar import CLASSES, RANGE, LidarScene, lidar_scene
from gossamer.spatial import DSVTConfig, Stage
from gossamer.spatial.boxes import Boxes, average_precision
from gossamer.spatial.detector import DetectorConfig, PillarDetector
from gossamer.spatial.set_attention import Order

PILLAR = 0.5
CELLS = round((RANGE[3] - RANGE[0]) / PILLAR)
AZIMUTHS = 384
RATE = 3e-3
TEST_SEED = 10**6  # apart from the seeds of the scenes trained on
BACKBONES: dict[str, tuple[Order, Order] | None] = {
    "dsvt": ("y", "x"),
    "not rotated": ("y", "y"),
    "convolutions": None,
}


@dataclass(frozen=True)
class Size:
    """How much is computed at one scale."""

    seeds: int
    scenes: int  # to train on, for each seed
    steps: int
    batch: int
    test: int  # scenes


@dataclass(frozen=True)
class Arm:
    """Average precision of one detector, 0 to 100."""

    classes: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Over the classes."""
        return fmean(self.classes)

    def __str__(self) -> str:
        each = ", ".join(
            f"{name} {value:.1f}" for name, value in zip(CLASSES, self.classes, strict=True)
        )
        return f"{self.mean:.1f} ({each})"


def backbone(orders: tuple[Order, Order]) -> DSVTConfig:
    """Return the tiny DSVT-Pillar: 64 channels, 2 blocks, sets of 24."""
    return DSVTConfig(
        shape=(CELLS, CELLS, 1),
        channels=64,
        heads=4,
        hidden=128,
        stages=(Stage((12, 12, 1), blocks=2, set_size=24),),
        orders=orders,
    )


def train_arms(size: Size, seed: int) -> dict[str, list[Arm]]:
    """Train every detector from every seed on the same scenes, in equal steps, and test it.

    Runs go side by side on one thread each, which changes nothing in any of them.
    """
    threads = torch.get_num_threads()
    seeds = range(seed, seed + size.seeds)
    detectors = {(name, each): _detector(name, each) for name in BACKBONES for each in seeds}
    try:
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            drawn = {each: list(pool.map(_scene, _numbers(size.scenes, each))) for each in seeds}
            test = list(pool.map(_scene, range(TEST_SEED, TEST_SEED + size.test)))

            def run(arm: tuple[str, int]) -> Arm:
                train(detectors[arm], drawn[arm[1]], size, arm[1])
                return measure(detectors[arm], test)

            found = dict(zip(detectors, pool.map(run, detectors), strict=True))
    finally:
        torch.set_num_threads(threads)
    return {name: [found[name, each] for each in seeds] for name in BACKBONES}


def _numbers(count: int, seed: int) -> range:
    return range(seed * 10**4, seed * 10**4 + count)


def _scene(seed: int) -> LidarScene:
    return lidar_scene(seed, azimuths=AZIMUTHS)


def _detector(name: str, seed: int) -> PillarDetector:
    torch.manual_seed(seed)
    orders = BACKBONES[name]
    config = DetectorConfig(
        RANGE, PILLAR, len(CLASSES), backbone=None if orders is None else backbone(orders)
    )
    return PillarDetector(config)


def train(detector: PillarDetector, data: Sequence[LidarScene], size: Size, seed: int) -> None:
    """Train one detector; the order of the scenes is the seed's, whatever the backbone."""
    detector.train()
    optimizer = torch.optim.AdamW(detector.parameters(), RATE, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, RATE, total_steps=size.steps, pct_start=0.4
    )
    generator = torch.Generator().manual_seed(seed)
    epochs = -(-size.steps * size.batch // len(data))
    order = torch.cat([torch.randperm(len(data), generator=generator) for _ in range(epochs)])
    for batch in order[: size.steps * size.batch].split(size.batch):
        chosen = [data[place] for place in batch.tolist()]
        maps = detector([scene.points for scene in chosen])
        loss = detector.head.loss(maps, [Boxes(scene.boxes, scene.labels) for scene in chosen])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(detector.parameters(), 10.0)
        optimizer.step()
        schedule.step()
    detector.eval()


def measure(detector: PillarDetector, test: Sequence[LidarScene]) -> Arm:
    """Return the average precision of each class on scenes not trained on."""
    found: list[Boxes] = []
    for start in range(0, len(test), 8):
        found += detector.detect([scene.points for scene in test[start : start + 8]])
    truth = [Boxes(scene.boxes, scene.labels) for scene in test]
    precision = (average_precision(found, truth, label=label) for label in range(len(CLASSES)))
    return Arm(tuple(100 * value for value in precision))
