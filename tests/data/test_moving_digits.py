import pytest
import torch

pytest.importorskip("av")
pytest.importorskip("sklearn")
from gossamer.data.moving_digits import DIRECTIONS, SIZE, DigitClips


@pytest.fixture(scope="module")
def clips():
    return DigitClips("test", seed=0).draw(40, frames=4)


def test_frames_come_with_the_frame_before(clips):
    assert torch.equal(clips.video[:, 1:, 1], clips.video[:, :-1, 0])
    assert clips.video.min() >= 0 and clips.video.max() <= 1


def test_only_the_digit_moves_and_in_the_labelled_direction(clips):
    for video, label in zip(clips.video[:, :, 0], clips.labels.tolist(), strict=True):
        moved = (video.diff(dim=0) != 0).any(0)
        assert moved.float().mean() < 0.5
        rows, columns = DIRECTIONS[label // 2].tolist()
        errors = {}
        for shift in range(-2, 3):
            rolled = video[:-1].roll((shift * abs(rows), shift * abs(columns)), (1, 2))
            errors[shift] = float((video[1:] - rolled)[:, moved].square().mean())
        best = min(errors, key=lambda shift: errors[shift])
        assert best * (rows + columns) > 0, (label, errors)


def test_seeds_and_splits_differ():
    def draw(split, seed):
        return DigitClips(split, seed=seed).draw(4, frames=2).video

    assert torch.equal(draw("train", 1), draw("train", 1))
    assert not torch.equal(draw("train", 1), draw("train", 2))
    assert not torch.equal(draw("train", 1), draw("test", 1))
    train, test = DigitClips("train", seed=0), DigitClips("test", seed=0)
    kept = {digit.numpy().tobytes() for group in train._digits for digit in group}
    assert not kept & {digit.numpy().tobytes() for group in test._digits for digit in group}


def test_labels_cover_all_classes_and_place_says_nothing(clips):
    labels = DigitClips("train", seed=0).draw(200, frames=2).labels
    assert sorted(labels.unique().tolist()) == list(range(8))
    assert clips.video.shape == (40, 4, 2, SIZE, SIZE)


@pytest.mark.parametrize(("count", "frames"), [(0, 8), (4, 0)])
def test_nothing_to_draw_is_refused(count, frames):
    with pytest.raises(ValueError, match=f"expected count and frames >= 1, got {count} and"):
        DigitClips("test", seed=0).draw(count, frames=frames)


def test_an_unknown_split_is_refused():
    with pytest.raises(ValueError, match="expected split to be 'train' or 'test', got 'all'"):
        DigitClips("all", seed=0)
