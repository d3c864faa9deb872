"""One layer of a stream: the reference's values and counts, from what changed and nothing else."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from gossamer.errors import BackendError
from gossamer.kernels import DeltaConv, HeldImages, delta_conv, instruction_set, instruction_sets
from gossamer.kernels.program import Program

native = pytest.mark.skipif(not instruction_sets(), reason="the native kernels were not built")


def whole(shape: tuple[int, ...], seed: int, largest: int = 3) -> torch.Tensor:
    """Return small whole numbers: sums of their products are exact in every order."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-largest, largest + 1, shape, generator=generator).float()


def change(held: HeldImages, channels: int, share: float, seed: int) -> None:
    """Move some values, and note where and by how much as a layer before would have."""
    generator = torch.Generator().manual_seed(seed)
    shape = (*held.values.shape[:3], channels)
    moved = whole(shape, seed) * (torch.rand(shape, generator=generator) < share)
    moved *= torch.rand(shape[:3], generator=generator)[..., None] < 0.4
    held.values[..., :channels] += moved
    held.change.fill_(torch.nan)
    held.changed.copy_(moved.any(-1))
    held.change[held.changed.bool()] = 0
    held.change[..., :channels] = torch.where(
        held.changed.bool()[..., None], moved, held.change[..., :channels]
    )


LAYERS = st.fixed_dictionaries(
    {
        "images": st.integers(1, 2),
        "size": st.tuples(st.integers(3, 13), st.integers(3, 13)),
        "channels": st.sampled_from([1, 3, 16, 17, 40]),
        "rows": st.sampled_from([1, 16, 24, 65, 130]),
        "kernel": st.tuples(st.integers(1, 3), st.integers(1, 3)),
        "stride": st.tuples(st.integers(1, 2), st.integers(1, 2)),
        "dilation": st.tuples(st.integers(1, 2), st.integers(1, 2)),
        "zeros": st.tuples(*[st.integers(0, 2)] * 4),
        "clamp": st.sampled_from([(0.0, 6.0), (-math.inf, math.inf)]),
        "depthwise": st.booleans(),
        "sums": st.booleans(),
        "sparse_below": st.sampled_from([0.0, 0.3, 1.0]),
        "share": st.sampled_from([0.0, 0.1, 0.8]),
        "seed": st.integers(0, 99),
    }
)


def make(case: dict) -> tuple[list, torch.Tensor]:
    """Return twice source, layer, target and addend, and the weight."""
    images, (height, width), channels = case["images"], case["size"], case["channels"]
    rows = channels if case["depthwise"] else case["rows"]
    weight = whole((rows, 1 if case["depthwise"] else channels, *case["kernel"]), case["seed"])
    left, right, top, bottom = case["zeros"]
    spans = [d * (k - 1) + 1 for d, k in zip(case["dilation"], case["kernel"], strict=True)]
    tall = (height + top + bottom - spans[0]) // case["stride"][0] + 1
    wide = (width + left + right - spans[1]) // case["stride"][1] + 1
    copies = []
    for _ in range(2):
        source = HeldImages.zeros(images, height, width, channels)
        target = HeldImages.zeros(images, max(tall, 1), max(wide, 1), rows)
        layer = DeltaConv.pack(
            weight,
            whole((rows,), case["seed"] + 1),
            2.0 ** whole((rows,), case["seed"] + 2, largest=1),
            target,
            depthwise=case["depthwise"],
            stride=case["stride"],
            dilation=case["dilation"],
            before=(top, left),
            clamp=case["clamp"],
            sparse_below=case["sparse_below"],
        )
        addend = HeldImages.zeros(images, max(tall, 1), max(wide, 1), rows)
        copies.append((source, layer, target, addend if case["sums"] else None, rows, channels))
    return (copies if min(tall, wide) > 0 else []), weight


@native
@settings(max_examples=40, deadline=None)
@given(LAYERS)
def test_agrees_with_the_reference_frame_by_frame(case):
    copies, weight = make(case)
    for frame in range(3 if copies else 0):
        for isa in instruction_sets() if frame == 2 else instruction_sets()[:1]:
            counts = []
            for copy, impl in zip(copies, ("cpu", "reference"), strict=True):
                source, layer, target, addend, rows, channels = copy
                change(source, channels, case["share"], 7 * frame + case["seed"])
                if addend is not None:
                    change(addend, rows, case["share"], 9 * frame + case["seed"])
                with instruction_set(isa):
                    counts.append(
                        delta_conv(
                            source, layer, target, addend=addend, afresh=frame == 0, impl=impl
                        )
                    )
            (_, layer, mine, _, _, _), (source, _, theirs, addend, rows, channels) = copies
            assert counts[0] == counts[1]
            assert torch.equal(mine.values, theirs.values)
            assert torch.equal(mine.changed, theirs.changed)
            marked = mine.changed.bool()
            assert torch.equal(mine.change[marked], theirs.change[marked])
            padded = F.pad(source.values[..., :channels].permute(0, 3, 1, 2), case["zeros"])
            groups = channels if case["depthwise"] else 1
            options = (case["stride"], 0, case["dilation"], groups)
            z = F.conv2d(padded, weight, layer.bias[:rows], *options).permute(0, 2, 3, 1)
            if addend is not None:
                z = z + addend.values[..., :rows]
            step = layer.step[:rows]
            assert torch.equal(
                theirs.values[..., :rows], (z.clamp(*case["clamp"]) / step).round() * step
            )


def small(sparse_below: float = 1.0) -> tuple[HeldImages, DeltaConv, HeldImages]:
    source, target = HeldImages.zeros(1, 5, 5, 4), HeldImages.zeros(1, 5, 5, 6)
    layer = DeltaConv.pack(
        whole((6, 4, 3, 3), 0),
        None,
        torch.tensor(1.0),
        target,
        before=(1, 1),
        sparse_below=sparse_below,
    )
    return source, layer, target


def test_counts_by_hand(isa):
    source, layer, target = small()
    assert delta_conv(source, layer, target, afresh=True) == 4 * (3 * 5 - 2) ** 2
    source.changed[0, 0, 2] = 1
    source.change[0, 0, 2, :2] = source.values[0, 0, 2, :2] = 1.0
    assert delta_conv(source, layer, target) == 2 * 6  # 2 values, each read by 2 x 3 positions
    source, layer, target = small(sparse_below=2 / 36)
    assert delta_conv(source, layer, target) == 0
    source.changed[0, 2, 2] = 1
    source.change[0, 2, 2, :3] = 1.0
    assert delta_conv(source, layer, target) == 9 * 4 * 9  # too much has changed: all, afresh


def test_what_did_not_change_is_not_touched(isa):
    source, layer, target = small()
    layer.weight[:, :, 1:] = torch.nan
    layer.sums[0, :, 3:] = torch.nan
    target.values[0, :, 3:] = torch.nan
    source.changed[0, 2, 1] = 1
    source.change[0, 2, 1, 0] = source.values[0, 2, 1, 0] = 2.0
    assert delta_conv(source, layer, target) == 9
    assert target.changed[0, :, 3:].sum() == 0 and target.changed.sum() > 0
    assert torch.isfinite(target.values[0, :, :3]).all()


def test_rounds_to_even_whatever_the_size(isa):
    values = torch.tensor([0.5, 1.5, -0.5, -2.5, 0.49999997, 4194303.5, 8388609.0, -1e30, 3e38])
    source = HeldImages.zeros(1, 1, 1, len(values))
    target = HeldImages.zeros(1, 1, 1, len(values))
    ones = torch.ones(len(values), 1, 1, 1)
    layer = DeltaConv.pack(ones, None, torch.tensor(1.0), target, depthwise=True)
    source.values[0, 0, 0, : len(values)] = values
    delta_conv(source, layer, target, afresh=True)
    assert torch.equal(target.values[0, 0, 0, : len(values)], values.round())


@native
def test_a_program_looks_again_in_every_run():
    source, layer, target = small()
    copy = HeldImages(*(part.clone() for part in (target.values, target.changed, target.change)))
    twin = replace(layer, sums=torch.zeros_like(layer.sums))
    nothing = torch.empty(1)
    afresh, products = torch.ones(1, dtype=torch.uint8), torch.zeros(1, dtype=torch.int64)
    program = Program(nothing, nothing)
    program.delta_conv(source, layer, target, None, afresh, products)
    for frame in range(3):
        change(source, 4, 0.5, frame)
        afresh.fill_(frame == 0)
        program.run(nothing, nothing)
        assert int(products) == delta_conv(source, twin, copy, afresh=frame == 0)
        assert torch.equal(target.values, copy.values)


def test_float64_runs_on_the_reference():
    source = HeldImages.zeros(1, 2, 2, 1, torch.float64)
    target = HeldImages.zeros(1, 2, 2, 1, torch.float64)
    weight = torch.ones(1, 1, 1, 1, dtype=torch.float64)
    layer = DeltaConv.pack(weight, None, torch.tensor(1e-12), target)
    source.values[0, 0, 0, 0] = 1 + 1e-12
    delta_conv(source, layer, target, afresh=True)
    assert target.values[0, 0, 0, 0] != 1.0
    if instruction_sets():
        with pytest.raises(BackendError, match="'cpu' needs float32; try impl='auto'"):
            delta_conv(source, layer, target, impl="cpu")


def test_bad_input_is_refused():
    source, layer, target = small()
    weight, step = torch.ones(6, 4, 3, 3), torch.tensor(1.0)
    refused = (
        ({"weight": weight[0]}, r"expected weight \[M, K, kh, kw\]"),
        ({"depthwise": True}, "K of 1 if depthwise"),
        ({"weight": torch.ones(17, 4, 3, 3)}, "a target of 17 channels"),
        ({"step": torch.tensor([1.0, 0.0])}, "positive steps"),
        ({"step": torch.tensor(torch.nan)}, "positive steps"),
        ({"before": (-1, 0)}, "expected zeros >= 0"),
        ({"stride": (0, 1)}, "stride and dilation >= 1"),
        ({"clamp": (1.0, 0.0)}, "an ordered clamp"),
        ({"sparse_below": 1.1}, "sparse_below in 0..1"),
    )
    for options, message in refused:
        given = {"weight": weight, "bias": None, "step": step, "target": target} | options
        with pytest.raises(ValueError, match=message):
            DeltaConv.pack(**given)
    with pytest.raises(ValueError, match="1 images and 4 channels, padded, got"):
        delta_conv(HeldImages.zeros(1, 5, 5, 17), layer, target)
    with pytest.raises(ValueError, match="the target that the layer was packed for"):
        delta_conv(source, layer, HeldImages.zeros(1, 4, 5, 6))
    with pytest.raises(ValueError, match="expected an addend"):
        delta_conv(source, layer, target, addend=source.zeros(1, 4, 5, 6))
    with pytest.raises(ValueError, match="addend in torch"):
        delta_conv(HeldImages.zeros(1, 5, 5, 4, torch.float64), layer, target)
