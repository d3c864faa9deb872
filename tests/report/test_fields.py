"""The picture of a dictionary holds every atom at its place and scale."""

import numpy as np
import pytest

from gossamer.report.fields import plot_fields


def test_every_atom_is_drawn_at_its_own_scale():
    atoms = np.random.default_rng(0).normal(size=(7, 16)) * np.logspace(-3, 3, 7)[:, None]
    picture = np.asarray(plot_fields(atoms, columns=3).axes[0].images[0].get_array())
    assert picture.shape == (3 * 5 + 1, 3 * 5 + 1)
    for index, atom in enumerate(atoms):
        row, column = divmod(index, 3)
        drawn = picture[row * 5 + 1 : row * 5 + 5, column * 5 + 1 : column * 5 + 5]
        assert np.allclose(drawn, atom.reshape(4, 4) / np.abs(atom).max())
    assert np.isnan(np.ma.filled(picture[11:, 6:], np.nan)).all()
    assert np.isnan(np.ma.filled(picture[::5], np.nan)).all()


def test_zero_is_grey_and_the_file_is_written(tmp_path):
    figure = plot_fields(np.zeros((1, 9)), title="nothing")
    image = figure.axes[0].images[0]
    assert (image.norm.vmin, image.norm.vmax) == (-1, 1)
    assert np.asarray(image.get_array())[1, 1] == 0
    assert figure.axes[0].get_title() == "nothing"
    figure.savefig(tmp_path / "fields.png")
    assert (tmp_path / "fields.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("components", "options", "message"),
    [
        (np.ones(9), {}, r"\[K, size \* size\], got \(9,\)"),
        (np.ones((2, 8)), {}, r"got \(2, 8\)"),
        (np.ones((0, 9)), {}, r"got \(0, 9\)"),
        (np.full((1, 9), np.nan), {}, "finite"),
        (np.ones((1, 9)), {"columns": 0}, "columns: .* got 0"),
    ],
)
def test_refuses(components, options, message):
    with pytest.raises(ValueError, match=message):
        plot_fields(components, **options)
