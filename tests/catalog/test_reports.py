"""Reports as JSON: read strictly, described by a schema, and not satisfied by empty words."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gossamer import catalog
from gossamer.catalog.reports import Environment, Quality, Report, Row, from_json, schema


@pytest.fixture
def document(good: Report) -> dict:
    return json.loads(json.dumps(good.to_json()))


def test_a_report_survives_json(good, document):
    assert from_json(document) == good
    for optional in ("statements", "reasons", "schema"):
        del document[optional]
    assert from_json(document).rows == good.rows


def set_at(document: dict, path: str, value: object) -> dict:
    *keys, last = [int(key) if key.isdigit() else key for key in path.split(".")]
    target = document
    for key in keys:
        target = target[key]
    target[last] = value
    return document


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("title", "", r"title: expected at least 2 words, got ''"),
        ("title", "- .", r"title: expected at least 2 words"),
        ("schema", 2, r"schema: expected 1, got 2"),
        ("venue", "x", r"venue: expected one of title, taxonomy"),
        ("taxonomy.object", ["kites"], r"taxonomy: object: expected one of weights"),
        ("taxonomy.object", "weights", r"taxonomy.object: expected a list, got 'weights'"),
        ("taxonomy.density_of", "", r"taxonomy: density_of: expected a few words"),
        ("quality.name", "x", r"quality: name: expected at least 2 words"),
        ("quality.selected_on", "", r"quality.selected_on: expected one of nothing, "),
        ("quality.higher_is_better", 1, r"quality.higher_is_better: expected boolean, got 1"),
        ("environment.machine", " ", r"environment: machine: expected at least 1 words"),
        ("environment.threads", 0, r"environment: threads: expected at least 1, got 0"),
        ("environment.threads", 2.0, r"environment.threads: expected integer, got 2.0"),
        ("environment.settings", [], r"environment.settings: expected an object of text"),
        ("environment.settings", {"a": [1]}, r"environment.settings: expected an object of text"),
        ("seeds", [0, "1"], r"seeds\[1\]: expected integer, got '1'"),
        ("rows", [], r"rows: expected each name once and one of arm 'ours', got \[\]"),
        ("rows.1.name", "a", r"rows: expected each name once"),
        ("rows.0.arm", "mine", r"rows\[0\].arm: expected one of ours"),
        ("rows.0.density", 0, r"rows\[0\]: density: expected it in \(0, 1\], got 0"),
        ("rows.0.density", 1.5, r"rows\[0\]: density: expected it in"),
        ("rows.0.density", "0.1", r"rows\[0\].density: expected number, got '0.1'"),
        ("rows.0.parameters", 0, r"rows\[0\]: parameters: expected at least 1"),
        ("rows.0.peak_dense", ["all"], r"rows\[0\]: peak_dense: expected one of none"),
        ("rows.0.decided", "late", r"rows\[0\]: decided: expected one of before_training"),
        ("rows.0.decided", None, r"rows: expected 'a' to be decided sparse_to_sparse, .* got None"),
        ("rows.0.decided", "one_shot", r"rows: expected 'a' to be decided sparse_to_sparse"),
        ("rows.0.macs.values", [], r"rows\[0\].macs: values: expected positive ones"),
        ("rows.0.macs.values", [-1], r"rows\[0\].macs: values: expected positive ones"),
        ("rows.0.macs.values", [float("nan")], r"macs.values\[0\]: expected number, got nan"),
        ("rows.0.macs.provenance", "hearsay", r"rows\[0\].macs.provenance: expected one of meas"),
        ("rows.0.macs", 5, r"rows\[0\].macs: expected an object, got 5"),
        ("statements.0.kind", "nicer", r"statements\[0\].kind: expected one of faster"),
        ("statements.0.row", "z", r"statements: expected names of rows, got 'z'"),
        ("reasons", {"L1": "no"}, r"reasons.L1: expected at least 5 words, got 'no'"),
        ("reasons", {"L11": "no"}, r"reasons: expected lessons L1 to L10, got 'L11'"),
    ],
)  # fmt: skip
def test_a_wrong_field_is_named(document, path, value, message):
    with pytest.raises(ValueError, match=message):
        from_json(set_at(document, path, value))


@pytest.mark.parametrize("name", ["title", "taxonomy", "quality", "environment", "seeds", "rows"])
def test_a_missing_field_is_named(document, name):
    del document[name]
    with pytest.raises(ValueError, match=f"{name}: expected it, got no such field"):
        from_json(document)


@pytest.mark.parametrize("document", [None, [], 3, "report", {"rows": 1}])
def test_something_else_is_refused(document):
    with pytest.raises(ValueError, match="expected"):
        from_json(document)


junk = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)


@settings(max_examples=150, deadline=None)
@given(value=junk, data=st.data())
def test_any_damage_is_a_report_or_a_value_error(good_document, value, data):
    document = json.loads(good_document)
    target = document
    while isinstance(target, dict | list) and target:
        keys = sorted(target) if isinstance(target, dict) else range(len(target))
        key = data.draw(st.sampled_from(list(keys)))
        if data.draw(st.booleans()) or not isinstance(target[key], dict | list):
            target[key] = value
            break
        target = target[key]
    try:
        found = from_json(document)
    except ValueError:
        return
    assert isinstance(found, Report)


@pytest.fixture(scope="module")
def good_document() -> str:
    return json.dumps(
        Report(
            title="One small report",
            taxonomy=catalog.get("sr-ste").taxonomy,
            quality=Quality("test loss", False, "nothing"),
            environment=Environment(
                "cpu", "a machine", "float32", 1, 1, "0123abc", "01234567", "nn.Linear", {}, True
            ),
            seeds=(0,),
            rows=(Row("us", "ours", 0.5, 10, "dense", (1.0,), "dense_to_sparse"),),
        ).to_json()
    )


def check_schema(kind: dict, value: object) -> None:
    """A reader of the few keywords that our schema uses."""
    if "anyOf" in kind:
        assert value is None or check_schema(kind["anyOf"][0], value) is None
    elif "enum" in kind:
        assert value in kind["enum"]
    elif kind["type"] == "object" and "properties" in kind:
        assert set(kind["required"]) <= set(value) <= set(kind["properties"])
        assert kind["additionalProperties"] is False
        for name, one in value.items():
            check_schema(kind["properties"][name], one)
    elif kind["type"] == "array":
        for one in value:
            check_schema(kind["items"], one)
    else:
        types = {"string": str, "integer": int, "number": float, "boolean": bool, "object": dict}
        assert isinstance(value, types[kind["type"]])


def test_the_schema_describes_what_is_read(document):
    described = schema()
    json.dumps(described)
    assert described["$schema"].startswith("https://json-schema.org/")
    check_schema(described, document)
    assert described["properties"]["rows"]["items"]["properties"]["arm"]["enum"][0] == "ours"
