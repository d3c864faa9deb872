"""DSnoT's evidence: the quick claims on a tiny model, and criteria that would notice a fake."""

from dataclasses import replace

import pytest
import torch

from gossamer.bench.timing import Samples
from gossamer.compression import DSnoT, Refinement, Wanda, prune
from gossamer.kernels import pack
from gossamer.models import LoadedModel
from gossamer.reproduce import dsnot, run
from gossamer.testing.attention import prompt, tiny_llama


def test_quick_scale_compares_errors_and_no_times(monkeypatch):
    model = tiny_llama(layers=7)
    asked = []
    monkeypatch.setattr(
        dsnot.models, "load", lambda name, dtype: LoadedModel(model, None, name, "", "", None)
    )
    monkeypatch.setattr(
        dsnot, "token_windows", lambda *_, count, **options: asked.append(count) or prompt(count)
    )
    evidence = run("dsnot", scale="quick")
    assert evidence.error is None and len(evidence.claims) == 2 and asked == [4]
    assert float(evidence.claims[0].ours) > 1.5  # four swaps of 64 weights
    assert "6 blocks" in evidence.claims[0].setting
    assert model.config.num_hidden_layers == 7 and len(model.model.layers) == 7


def test_swaps_that_do_nothing_would_be_noticed(monkeypatch):
    def idle(self, layer, before):
        error = torch.ones(len(before.mask), dtype=torch.float64)
        return Refinement(before.mask, error.long() * 0, error, error)

    monkeypatch.setattr(DSnoT, "refine", idle)
    wanda, magnitude = dsnot.layer_claims(tiny_llama(), prompt(2), None)
    assert (wanda.ours, wanda.holds, magnitude.holds) == (1.0, False, False)
    assert "0% of rows" in wanda.setting


@pytest.mark.parametrize(("swaps", "holds"), [(1.0, True), (3.0, False)])
def test_swaps_must_take_a_fraction_of_the_time(monkeypatch, swaps, holds):
    taken = {"refine": swaps, "decide": 10.0}
    monkeypatch.setattr(dsnot, "_timed", lambda function, *_: taken[function.__name__])
    claim = dsnot.swap_time_claim(tiny_llama(layers=1), prompt(2))
    assert claim.holds is holds and claim.ours == pytest.approx(swaps / 10 * claim.baseline)
    assert "all blocks" in claim.setting


@pytest.mark.slow
def test_quick_claims_hold():
    assert run("dsnot", scale="quick", seed=0).holds


@pytest.mark.parametrize(
    ("found", "holds"),
    [((100.0, 30.0), [True] * 3), ((100.0, 80.0), [True, True, False]), ((9.0, 12.0), [False] * 3)],
)
def test_perplexity_claims_follow_the_median_of_all_draws(monkeypatch, found, holds):
    asked = []

    def fake(model, methods, calibration, held_out):
        asked.append((repr(methods[0]), len(methods), int(calibration[0, 0])))
        odd = int(calibration[0, 0]) == 1  # one draw of three
        return 1e6 if odd and len(methods) == 2 else found[len(methods) - 1]

    monkeypatch.setattr(dsnot, "perplexity", lambda model, windows: 10.0)
    monkeypatch.setattr(dsnot, "pruned_perplexity", fake)
    draws = [torch.full((2, 8), draw) for draw in range(3)]
    claims = list(dsnot.perplexity_claims(None, draws, prompt(2)))
    assert [claim.holds for claim in claims] == holds
    assert claims[0].paper and claims[1].paper is None
    # 18 pairs' ends, two more draws of each end with a bar; magnitude alone needs no calibration
    assert len(asked) == len(set(asked)) == 18 + 2 * (2 * 2 + 1)
    for name in ("Magnitude", "Wanda", "SparseGPT"):
        for density in (0.5, 0.4, 0.3):
            row = f"{name} {density} {found[0]:.1f} -> {found[1]:.1f}"
            assert row in claims[0].setting and row not in claims[1].setting


def test_full_scale_holds_out_what_no_draw_calibrates_on(monkeypatch):
    windows = torch.arange(64)[:, None]
    parts = []
    loaded = LoadedModel(tiny_llama(), None, "", "", "", None)
    monkeypatch.setattr(dsnot.models, "load", lambda name, dtype: loaded)
    monkeypatch.setattr(dsnot, "token_windows", lambda *_, count, **options: windows[:count])
    monkeypatch.setattr(dsnot, "layer_claims", lambda *_: [])
    monkeypatch.setattr(dsnot, "swap_time_claim", lambda *_: None)
    monkeypatch.setattr(dsnot, "decode_claim", lambda *_: None)
    monkeypatch.setattr(
        dsnot,
        "perplexity_claims",
        lambda _, draws, held_out: parts.extend([*draws, held_out]) or [],
    )
    assert list(dsnot.reproduce("full", 0)) == [None, None]
    assert [len(part) for part in parts] == [16] * 4
    assert torch.equal(torch.cat(parts), windows)


def test_pruned_perplexity_leaves_the_model_and_the_held_out_text_alone(monkeypatch):
    model, windows = tiny_llama(), prompt(4)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    seen = []
    monkeypatch.setattr(
        dsnot, "prune", lambda m, methods, c: seen.append(c) or prune(m, methods, c)
    )
    value = dsnot.pruned_perplexity(model, [Wanda(0.5)], windows[:3], windows[3:])
    assert torch.equal(seen[0][0], windows[:3]) and value > 1
    assert all(torch.equal(before[name], weight) for name, weight in model.state_dict().items())


@pytest.mark.parametrize(
    ("ours", "spoiled", "holds"), [(1.0, False, True), (1.4, False, False), (1.0, True, False)]
)
def test_decoding_must_be_faster_and_right(monkeypatch, ours, spoiled, holds):
    def timed(loops, repeats, settle=0.0):
        if "sum" in loops:
            return {"sum": Samples((1.0,))}
        assert all(len(loop()) == dsnot.DECODED for loop in loops.values())
        return {"float32": Samples((2.0,)), "bfloat16": Samples((3.0,)), "packed": Samples((ours,))}

    monkeypatch.setattr(dsnot, "interleaved", timed)
    if spoiled:
        packed = dsnot.pack_linears

        def wrong(model, **options):
            found = packed(model, **options)
            found.model.layers[0].mlp.down_proj.values.mul_(1.5)
            return found

        monkeypatch.setattr(dsnot, "pack_linears", wrong)
    claim = dsnot.decode_claim(tiny_llama().bfloat16(), prompt(2))
    assert claim.holds is holds and claim.baseline == pytest.approx(125)


def test_decoding_starts_from_the_prompt_every_time():
    decode = dsnot.decoding(tiny_llama(), prompt(1, 9))
    with torch.inference_mode():
        assert decode() == decode()


def test_stored_bytes_count_values_and_masks():
    weight = pack(torch.eye(3, 100), dtype=torch.bfloat16)
    assert dsnot.stored_bytes(weight) == 3 * 2 + 3 * 16


def test_a_wide_layer_is_timed():
    claim = dsnot.refinement_time(0, rows=64, width=256, device="cpu")
    assert float(claim.ours) > 0 and "4 cycles" in claim.setting
    assert replace(claim, holds=True).holds
