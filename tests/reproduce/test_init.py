"""The harness finds reproductions, validates first, and never lets a stopped run count."""

import json
import re
import sys
from dataclasses import fields

import numpy as np
import pytest
import torch

from gossamer import reproduce
from gossamer.errors import FormatError
from gossamer.files import save_json
from gossamer.reproduce import Claim, Evidence, available, load, run, stopped, validate

HOLDS = Claim("half the work", 0.5, "Table 1", 1.0, 0.48, "ours <= 0.5", True, "tiny model")
FAILS = Claim("twice as fast", "2x", "Figure 2", None, 1.1, "ours >= 2", False)

MODULE = """
from gossamer.reproduce import Claim

def reproduce(scale, seed):
    yield Claim(f"{scale} {seed}", 0.5, "Table 1", 1.0, 0.48, "ours <= 0.5", True)
"""


@pytest.fixture
def papers(tmp_path, monkeypatch):
    """A package of reproductions of its own: one works, one returns something else."""
    (tmp_path / "tiny_paper.py").write_text(MODULE)
    (tmp_path / "odd_paper.py").write_text("def reproduce(scale, seed):\n    return ['yes']\n")
    (tmp_path / "_shared.py").write_text("")
    monkeypatch.setattr(reproduce, "__path__", [str(tmp_path)])
    yield tmp_path
    for name in ("tiny_paper", "odd_paper"):
        sys.modules.pop(f"gossamer.reproduce.{name}", None)


def evidence(*claims, error=None):
    return Evidence(
        slug="tiny-paper",
        scale="quick",
        seed=0,
        device="cpu",
        seconds=1.5,
        claims=claims,
        threads=2,
        machine="Example CPU",
        versions={"torch": "2.13.0"},
        error=error,
    )


def test_every_module_is_found_under_its_slug(papers):
    assert available() == ("odd-paper", "tiny-paper")


def test_the_packages_own_modules_are_slugs():
    assert all(re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", slug) for slug in available())


def test_run_passes_scale_and_seed_on_and_wraps_the_claims(papers):
    found = run("tiny-paper", scale="full", seed=3)
    assert (found.slug, found.scale, found.seed, found.device) == ("tiny-paper", "full", 3, "cpu")
    assert found.claims == (Claim("full 3", 0.5, "Table 1", 1.0, 0.48, "ours <= 0.5", True),)
    assert found.seconds >= 0
    assert found.threads == torch.get_num_threads()
    assert "torch" in found.versions
    assert found.holds


@pytest.mark.parametrize(
    ("slug", "options", "message"),
    [
        ("tiny-papr", {}, "slug: expected .* got 'tiny-papr', try 'tiny-paper'"),
        ("zzz", {}, "slug: expected .* got 'zzz', try `gossamer papers`"),
        ("-shared", {}, "slug: expected"),
        ("tiny-paper", {"scale": "huge"}, "scale: expected one of quick, full, gpu, got 'huge'"),
        ("tiny-paper", {"seed": -1}, "seed: expected 0 <= seed < 2.*, got -1"),
        ("tiny-paper", {"scale": "gpu"}, "scale: expected a CUDA device .* try 'full'"),
    ],
)
def test_bad_input_is_refused_before_anything_runs(papers, monkeypatch, slug, options, message):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for refuse in (validate, run):
        with pytest.raises(ValueError, match=message):
            refuse(slug, **options)
    assert "gossamer.reproduce.tiny_paper" not in sys.modules


def test_a_module_that_returns_no_claims_is_refused(papers):
    with pytest.raises(TypeError, match="odd-paper: expected claims, got str"):
        run("odd-paper")


@pytest.mark.parametrize(
    ("found", "holds"),
    [
        (evidence(HOLDS), True),
        (evidence(HOLDS, HOLDS), True),
        (evidence(HOLDS, FAILS), False),
        (evidence(), False),
        (evidence(HOLDS, error="interrupted"), False),
        (stopped("a", scale="quick", seed=0, seconds=1.0, error="interrupted"), False),
    ],
)
def test_evidence_holds_only_if_complete_and_every_claim_does(found, holds):
    assert found.holds is holds


def test_json_has_the_documented_fields_first_and_survives_the_disk(tmp_path):
    found = evidence(HOLDS, FAILS)
    document = found.to_json()
    assert document["claims"][0] == {
        "claim": "half the work",
        "paper": 0.5,
        "source": "Table 1",
        "baseline": 1.0,
        "ours": 0.48,
        "criterion": "ours <= 0.5",
        "holds": True,
        "setting": "tiny model",
        "seeds": None,
    }
    required = {"slug", "scale", "seed", "device", "seconds", "claims", "threads", "versions"}
    assert required <= set(document)
    save_json(tmp_path / "tiny-paper.json", document)
    assert load(tmp_path / "tiny-paper.json") == found


def test_a_stopped_run_stays_stopped_on_disk(tmp_path):
    found = stopped("tiny-paper", scale="full", seed=1, seconds=2.0, error="interrupted")
    assert found.to_json()["complete"] is False
    save_json(tmp_path / "a.json", found.to_json())
    assert load(tmp_path / "a.json") == found


def test_figures_that_are_not_finite_become_text():
    claim = Claim("stays finite", None, "", float("inf"), float("nan"), "ours < 10", False)
    document = evidence(claim).to_json()["claims"][0]
    assert (document["baseline"], document["ours"]) == ("inf", "nan")
    json.dumps(document, allow_nan=False)


def test_evidence_of_before_seeds_and_commits_is_still_read(tmp_path):
    document = evidence(HOLDS).to_json()
    del document["commit"], document["claims"][0]["seeds"]
    save_json(tmp_path / "a.json", document)
    assert load(tmp_path / "a.json") == evidence(HOLDS)


@pytest.mark.parametrize("name", ["slug", "claims", "seconds", "versions", "machine"])
def test_evidence_with_a_field_missing_or_wrong_is_refused(tmp_path, name):
    assert name in {field.name for field in fields(Evidence)}
    whole = evidence(HOLDS).to_json()
    missing = {key: value for key, value in whole.items() if key != name}
    for document in (
        missing,
        {**whole, name: 3.5 if name != "seconds" else "3"},
        [],
        {"schema": 2},
    ):
        save_json(tmp_path / "a.json", document)
        with pytest.raises(FormatError):
            load(tmp_path / "a.json")


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("ours", torch.tensor(1.0), "ours: expected a float, a str or None, got Tensor"),
        ("paper", True, "paper: expected a float, a str or None, got bool"),
        ("baseline", np.float32(1), "baseline: .* got float32, try float"),
        ("holds", torch.tensor(True), "holds: expected a bool, got Tensor, try bool"),
        ("holds", np.bool_(True), "holds: expected a bool"),
        ("holds", 1, "holds: expected a bool, got int"),
        ("seeds", 0, "seeds: expected an int of at least 1"),
        ("seeds", True, "seeds: expected an int"),
        ("criterion", None, "criterion: expected a str, got NoneType"),
    ],
)
def test_claims_are_plain_data(field, value, message):
    with pytest.raises(TypeError, match=message):
        Claim(**{**vars(HOLDS), field: value})
