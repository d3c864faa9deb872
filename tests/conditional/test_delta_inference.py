"""Streaming: the output of whole frames, for the multiply-adds of what changed, and no other."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from gossamer.conditional import DeltaInference, insert_delta, insert_l1


class Net(nn.Module):
    """Strides, dilation, groups, batch norm, a residual sum in place, pooling, a shared layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 8, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.wide = nn.Conv2d(8, 8, (3, 2), padding=(2, 1), dilation=(2, 1), stride=(1, 2))
        self.depthwise = nn.Conv2d(8, 8, 3, padding="same", groups=8)
        self.shared = nn.Conv2d(8, 8, 1, bias=False)
        self.pad = nn.ZeroPad2d((0, 1, 0, 1))
        self.pool = nn.MaxPool2d(2)
        self.act = nn.ReLU(inplace=True)
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        x = self.act(self.norm(self.stem(x)))
        x = self.act(self.wide(self.pad(x)))
        y = self.depthwise(x)
        y += x
        y = self.act(self.shared(self.act(self.shared(self.act(y)))))
        return self.head(self.pool(y).mean((2, 3)))


def net() -> Net:
    torch.manual_seed(0)
    model = Net()
    nn.init.normal_(model.norm.get_buffer("running_mean"))
    nn.init.uniform_(model.norm.get_buffer("running_var"), 0.5, 2)
    return model.eval()


def standing_camera(batch: int, frames: int, seed: int = 0) -> Tensor:
    """Return [B, T, 2, 16, 16] in which one patch changes."""
    generator = torch.Generator().manual_seed(seed)
    video = torch.randn(batch, 1, 2, 16, 16, generator=generator).repeat(1, frames, 1, 1, 1)
    video[:, :, :, 4:7, 5:8] = torch.randn(batch, frames, 2, 3, 3, generator=generator)
    return video


def stream(streaming: DeltaInference, video: Tensor) -> tuple[Tensor, list]:
    steps = [streaming.step(frame) for frame in video.unbind(1)]
    return torch.stack([step.output for step in steps], 1), steps


@settings(max_examples=15, deadline=None)
@given(
    st.integers(1, 3),
    st.sampled_from([1e-6, 0.1, 0.7]),
    st.sampled_from([0.0, 0.2, 1.0]),
    st.integers(0, 50),
)
def test_streams_what_the_model_says_of_whole_frames(batch, init, dense_above, seed):
    video = standing_camera(batch, 5, seed)
    model = insert_delta(net(), video, init=init).eval()
    streaming = DeltaInference(model, dense_above=dense_above, dtype=torch.float64)
    output, steps = stream(streaming, video)
    with torch.no_grad():
        expected = model.double()(video.double())
    torch.testing.assert_close(output, expected, rtol=0, atol=1e-11)
    assert steps[0].density == 1
    assert dense_above == 0 or max(step.density for step in steps[1:]) < 0.6


def test_vanishing_steps_are_the_dense_model_itself():
    video, model = standing_camera(2, 4), net()
    streaming = DeltaInference(insert_delta(model, video, init=1e-9), dtype=torch.float64)
    output, _ = stream(streaming, video)
    with torch.no_grad():
        dense = torch.stack([model.double()(frame.double()) for frame in video.unbind(1)], 1)
    torch.testing.assert_close(output, dense, rtol=0, atol=1e-6)


@torch.no_grad()
def test_counts_are_the_products_of_changed_inputs_and_no_more():
    """Count by brute force, from what the layers of the whole model read in two frames."""
    video = standing_camera(2, 4).double()
    model = insert_delta(net(), video, init=0.3).eval().double()
    reads: list[tuple[nn.Module, Tensor]] = []
    hooks = [
        layer.register_forward_pre_hook(lambda own, inputs: reads.append((own, inputs[0])))
        for layer in model.modules()
        if isinstance(layer, nn.Conv2d | nn.Linear)
    ]
    model(video)
    for hook in hooks:  # streaming would call some of them, too
        hook.remove()
    streaming = DeltaInference(model, dense_above=1.0, dtype=torch.float64)
    _, steps = stream(streaming, video)
    for time, step in enumerate(steps[1:], 1):
        expected = []
        for layer, read in reads:
            frames = read.unflatten(0, (2, 4))
            changed = (frames[:, time] != frames[:, time - 1]).double()
            if isinstance(layer, nn.Linear):
                expected.append(int(changed.sum()) * layer.out_features)
                continue
            padding = layer._reversed_padding_repeated_twice
            channels = layer.weight.shape[0]
            ones = torch.ones_like(layer.weight[:1])
            options = {"stride": layer.stride, "dilation": layer.dilation}
            if layer.groups > 1:  # every tap of a position that reads a change
                changed = changed.amax(1, keepdim=True)
                inside = F.conv2d(F.pad(torch.ones_like(changed), padding), ones, **options)
                met = F.conv2d(F.pad(changed, padding), ones, **options) > 0
                expected.append(int(inside[met].sum()) * channels)
            else:
                read_by = F.conv2d(F.pad(changed, padding), ones, **options)
                expected.append(int(read_by.sum()) * channels)
        assert [layer.multiply_adds for layer in step.layers] == expected
        total = sum(layer.dense_multiply_adds for layer in step.layers)
        assert 0 < sum(expected) == step.multiply_adds and step.density == sum(expected) / total


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(3, 4, 3, stride=2, padding=1),
        nn.Conv2d(3, 4, (1, 3), padding=(0, 2), dilation=2),
        nn.Conv2d(4, 6, 3, padding=1, groups=2),
        nn.Linear(3, 7),
    ],
    ids=str,
)
def test_dense_count_is_the_products_that_matter(layer):
    """Poison one input at a time: the outputs that turn NaN are the products it enters."""
    channels = layer.weight.shape[1] * getattr(layer, "groups", 1)
    shape = (channels,) if isinstance(layer, nn.Linear) else (channels, 6, 7)
    exact = copy.deepcopy(layer).double()  # in float32 a fast convolution would spread the poison
    products = 0
    for index in range(torch.Size(shape).numel()):
        frame = torch.zeros(shape, dtype=torch.float64)
        frame.view(-1)[index] = torch.nan
        products += int(exact(frame[None]).isnan().sum())
    video = torch.randn(1, 2, *shape)
    streaming = DeltaInference(insert_delta(layer, video))
    (work,) = streaming.step(video[:, 0]).layers
    assert work.multiply_adds == work.dense_multiply_adds == products


def poisoned(streaming: DeltaInference, channels: list[int], features: list[int]) -> None:
    """Overwrite with NaN all weights of a convolution, then a linear layer, but those named."""
    assert streaming._held is not None
    weight = streaming._held._steps[1][1].weight  # [kh, kw, K, M]
    weight[:, :, [k for k in range(weight.shape[2]) if k not in channels]] = torch.nan
    (linear,) = streaming._layers.values()
    rows = linear.weight_t
    spared = rows[features].clone()
    for poison in (linear.layer.weight, linear.layer.bias, rows):
        poison.fill_(torch.nan)
    rows[features] = spared


@torch.no_grad()
def test_what_did_not_change_is_not_multiplied():
    """One input channel changes: the weights of the others become poison."""
    torch.manual_seed(0)
    first = nn.Conv2d(4, 6, 3, padding=1)
    model = nn.Sequential(first, nn.Flatten(), nn.Linear(6 * 25, 3))
    # The third channel reaches only outputs 1 and 4.
    reached = torch.zeros(6, dtype=torch.bool)
    reached[[1, 4]] = True
    first.weight[~reached, 2] = 0
    video = torch.randn(1, 3, 4, 5, 5)
    video[:, 1:] = video[:, :1]
    video[:, 1:, 2] += 3 * torch.randn(1, 2, 5, 5)
    delta = insert_delta(model, video, init=0.05)
    clean, steps = stream(DeltaInference(delta, dense_above=1.0), video)
    streaming = DeltaInference(delta, dense_above=1.0)
    streaming.step(video[:, 0])
    changed = torch.zeros(6, 5, 5, dtype=torch.bool)
    changed[reached] = True
    poisoned(streaming, [2], changed.flatten().nonzero()[:, 0].tolist())
    for time in (1, 2):
        step = streaming.step(video[:, time])
        assert torch.equal(step.output, clean[:, time])
        assert 0 < step.multiply_adds == steps[time].multiply_adds


@torch.no_grad()
def test_a_frame_without_changes_multiplies_nothing():
    video = standing_camera(1, 1).repeat(1, 3, 1, 1, 1)
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 14 * 14, 2))
    streaming = DeltaInference(insert_delta(model, video))
    first = streaming.step(video[:, 0])
    poisoned(streaming, [], [])
    again = streaming.step(video[:, 1])
    assert again.multiply_adds == 0 and torch.equal(again.output, first.output)


def test_results_do_not_change_afterwards():
    video = standing_camera(1, 3)
    streaming = DeltaInference(insert_delta(nn.Conv2d(2, 3, 1), video, init=0.2))
    first = streaming.step(video[:, 0]).output
    kept = first.clone()
    streaming.step(video[:, 1])
    assert torch.equal(first, kept)


def test_a_scene_cut_runs_dense_and_leaves_nothing_behind():
    video = standing_camera(1, 4)
    video[:, 2:] = standing_camera(1, 2, seed=9)
    streaming = DeltaInference(insert_delta(net(), video, init=0.2))
    _, steps = stream(streaming, video)
    other = DeltaInference(insert_delta(net(), video, init=0.2))
    expected, _ = stream(other, video[:, 2:])
    assert steps[1].layers[0].multiply_adds < steps[1].layers[0].dense_multiply_adds
    assert steps[2].layers[0].multiply_adds == steps[2].layers[0].dense_multiply_adds
    torch.testing.assert_close(steps[2].output, expected[:, 0])


def test_reset_starts_anew_and_allows_another_size():
    model = insert_delta(net(), standing_camera(1, 2), init=0.2)
    streaming, fresh = DeltaInference(model), DeltaInference(model)
    first, second = standing_camera(1, 3), standing_camera(2, 3, seed=1)[..., :12, :]
    stream(streaming, first)
    streaming.reset()
    output, steps = stream(streaming, second)
    expected, expected_steps = stream(fresh, second)
    assert torch.equal(output, expected)
    assert [step.layers for step in steps] == [step.layers for step in expected_steps]


def test_resync_computes_afresh_on_time():
    video = standing_camera(1, 7)
    model = insert_delta(net(), video, init=0.2)
    _, steps = stream(DeltaInference(model, resync_every=3), video)
    assert [step.density == 1 for step in steps] == [n % 3 == 0 for n in range(7)]


def test_the_model_is_left_alone():
    video = standing_camera(1, 2)
    model = insert_delta(net(), video).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    graph = str(model.graph)
    stream(DeltaInference(model, dtype=torch.float64), video)
    assert model.training and str(model.graph) == graph
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_thousands_of_frames_do_not_drift():
    generator = torch.Generator().manual_seed(0)
    model = insert_delta(nn.Linear(64, 32), torch.zeros(1, 1, 64), init=0.1)
    streaming = DeltaInference(model, dense_above=1.0)
    frame = torch.randn(1, 64, generator=generator)
    for _ in range(3000):
        frame[0, torch.randint(64, (8,), generator=generator)] = torch.randn(8, generator=generator)
        output = streaming.step(frame.clone()).output
    with torch.no_grad():
        expected = model.eval()(frame[None])[:, 0]
    assert float((output - expected).abs().max()) < 3000 * 64 * 2**-24  # 3000 rounded sums


LINEAR = insert_delta(nn.Linear(4, 2), torch.zeros(1, 2, 4))


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: DeltaInference(LINEAR, dense_above=1.5), ValueError, "dense_above in 0..1"),
        (lambda: DeltaInference(LINEAR, resync_every=0), ValueError, "resync_every >= 1"),
        (lambda: DeltaInference(LINEAR, dtype=torch.float16), TypeError, "float32 or float64"),
        (
            lambda: DeltaInference(
                insert_delta(
                    nn.Conv2d(1, 1, 3, padding=1, padding_mode="reflect"),
                    torch.zeros(1, 2, 1, 4, 4),
                )
            ),
            ValueError,
            "expected zero padding, got 'reflect'",
        ),
        (
            lambda: DeltaInference(nn.Linear(4, 2)),
            ValueError,
            "to read a delta layer, got 'input_1'",
        ),
        (
            lambda: DeltaInference(insert_l1(nn.Linear(4, 2), torch.zeros(1, 2, 4))),
            ValueError,
            "to read a delta layer, .* try insert_delta",
        ),
        (lambda: DeltaInference(LINEAR).step(torch.zeros(1, 4).int()), ValueError, "finite"),
        (
            lambda: DeltaInference(LINEAR).step(torch.full((1, 4), torch.nan)),
            ValueError,
            "expected finite",
        ),
    ],
)
def test_bad_input_is_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_a_refused_frame_changes_nothing():
    streaming, other = DeltaInference(LINEAR), DeltaInference(LINEAR)
    first, second = torch.randn(1, 4), torch.randn(1, 4)
    streaming.step(first)
    for bad, message in ((torch.zeros(2, 4), "try reset"), (first * torch.inf, "finite")):
        with pytest.raises(ValueError, match=message):
            streaming.step(bad)
    other.step(first)
    assert torch.equal(streaming.step(second).output, other.step(second).output)


def test_a_first_frame_that_the_model_refused_leaves_nothing_behind():
    video = standing_camera(1, 2)
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.Flatten(), nn.Linear(4 * 14 * 14, 2))
    streaming = DeltaInference(insert_delta(model, video))
    with pytest.raises(RuntimeError):
        streaming.step(video[:, 0, :, 1:])  # too small for the linear layer, behind the convolution
    assert streaming.step(video[:, 0]).density == 1
