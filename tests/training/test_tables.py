"""Tables with named columns: text, gaps, constant columns, conditions by name; training, scores and samples of them."""

import csv

import numpy as np
import pytest
from runs_for_tests import iresnet

from iresnet_core.errors import DataFileError, InvalidArgumentError, MissingDependencyError, NonFiniteError, ShapeError
from iresnet_core.files.array_files import opened_table, read_array, write_array
from iresnet_core.training.datasets import DatasetSource, load_dataset
from iresnet_core.training.table_columns import TableColumns, numbers_of_columns

NAMES = ["id", "age", "city", "height", "always"]


def written(path, rows=200, gaps=0):
    """A table with text, gaps in the column of heights and a constant column; its ages and heights."""
    rng = np.random.default_rng(0)
    values = rng.standard_normal((rows, 2)) * [3, 10] + [40, 170]
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(NAMES)
        for k, (age, height) in enumerate(values):
            writer.writerow([k, age, "Rome", "NA" if k < gaps else height, 1])
    return values


def load(path, **options):
    return load_dataset(DatasetSource(str(path), **options))


def test_names_text_and_gaps_are_read(tmp_path):
    values = written(tmp_path / "x.csv", gaps=3)
    table = opened_table(tmp_path / "x.csv")
    assert table.names == tuple(NAMES)
    assert list(table.texts) == [2]
    assert np.isnan(table.values[:3, 3]).all()
    np.testing.assert_array_equal(table.values[3:, 3], values[3:, 1])
    with pytest.raises(DataFileError, match=r"line 2: 'Rome' in column city is not a number.*--drop city"):
        read_array(tmp_path / "x.csv")


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({}, DataFileError, "'Rome' in column city"),
        ({"drop": "city"}, NonFiniteError, r"column height, and so in 5 of 200.*--missing drop"),
        ({"drop": "city", "missing": "drop"}, DataFileError, r"same value in the columns always.*--drop always"),
        ({"drop": "city,town"}, InvalidArgumentError, "--drop takes numbers of columns.*names, which are id, age"),
        ({"drop": "0,1,2,3,4"}, InvalidArgumentError, "leaves no column"),
        ({"drop": "city", "missing": "guess"}, InvalidArgumentError, "drop or impute"),
        ({"drop": "age,2,4", "missing": "drop", "condition": "age"}, InvalidArgumentError, "--condition"),
        ({"drop": "city", "key": "x"}, InvalidArgumentError, "key"),
    ],
)
def test_what_cannot_be_used_is_refused_with_the_way_out(tmp_path, options, error, match):
    written(tmp_path / "x.csv", gaps=5)
    with pytest.raises(error, match=match):
        load(tmp_path / "x.csv", **options)


def test_toy_sets_have_no_columns_to_drop():
    with pytest.raises(InvalidArgumentError, match="drop does not apply"):
        load("moons", drop="0")


def test_rows_with_gaps_are_dropped_or_filled_with_medians(tmp_path):
    values = written(tmp_path / "x.csv", gaps=20)
    dropped = load(tmp_path / "x.csv", drop="id,city,always", missing="drop")
    assert sum(map(len, (dropped.train, dropped.validation, dropped.test))) == 180
    assert dropped.columns.names == ("age", "height")
    assert any("20 of 200 rows" in note for note in dropped.notes)
    filled = load(tmp_path / "x.csv", drop="id,city,always", missing="impute")
    parts = np.concatenate([filled.train, filled.validation, filled.test])
    assert len(parts) == 200
    median = filled.columns.fill[1]
    assert np.sum(parts[:, 1] == median) >= 20
    known = filled.train[filled.train[:, 1] != median, 1]
    assert median == pytest.approx(np.median(known), abs=0.5)
    assert set(values[20:, 1]) <= set(parts[:, 1])


def test_conditions_are_named_and_counted_in_the_file(tmp_path):
    values = written(tmp_path / "x.csv")
    for condition in ("age", "1", "-4"):
        dataset = load(tmp_path / "x.csv", drop="id,city,always", condition=condition)
        assert dataset.event_shape == (1,)
        assert set(dataset.contexts[0][:, 0]) <= set(values[:, 0])
        assert set(dataset.train[:, 0]) <= set(values[:, 1])


def test_constant_arrays_are_refused_too(tmp_path):
    x = np.random.default_rng(0).standard_normal((50, 3))
    x[:, 1] = 4
    np.save(tmp_path / "x.npy", x)
    with pytest.raises(DataFileError, match=r"same value in the columns 1, .*--drop 1\."):
        load(tmp_path / "x.npy")
    assert load(tmp_path / "x.npy", drop="1").event_shape == (2,)
    np.save(tmp_path / "whole.npy", (10 * x).astype("int16"))
    with pytest.raises(DataFileError, match="same value in the columns 1,"):
        load(tmp_path / "whole.npy")
    assert load(tmp_path / "whole.npy", drop="1").event_shape == (2,)


def test_columns_are_found_by_name_in_other_files(tmp_path):
    written(tmp_path / "x.csv")
    columns = TableColumns.of_table(opened_table(tmp_path / "x.csv"), "id,city,always", None)
    (tmp_path / "y.csv").write_text("height,other,age\n170,5,30\n")
    np.testing.assert_array_equal(columns.values_of(opened_table(tmp_path / "y.csv"), "y"), [[30, 170]])
    (tmp_path / "z.csv").write_text("1,30,2,170,4\n")  # without names: by the places in the file
    np.testing.assert_array_equal(columns.values_of(opened_table(tmp_path / "z.csv"), "z"), [[30, 170]])
    (tmp_path / "w.csv").write_text("height,other\n170,5\n")
    with pytest.raises(ShapeError, match="w lacks the columns age; it has height, other"):
        columns.values_of(opened_table(tmp_path / "w.csv"), "w")
    (tmp_path / "u.csv").write_text("height,age,age\n170,5,30\n")
    with pytest.raises(ShapeError, match="several columns of the names age"):
        columns.values_of(opened_table(tmp_path / "u.csv"), "u")
    (tmp_path / "v.csv").write_text("1,2,3\n")
    with pytest.raises(ShapeError, match="3 columns; the model was made for samples of 2 columns of the 5"):
        columns.values_of(opened_table(tmp_path / "v.csv"), "v")


def test_a_condition_must_vary_too(tmp_path):
    written(tmp_path / "x.csv")
    with pytest.raises(DataFileError, match="same value in the columns always"):
        load(tmp_path / "x.csv", drop="id,city", condition="always")


def test_advice_is_for_the_command_that_is_run(tmp_path):
    written(tmp_path / "x.csv", gaps=2)
    table = opened_table(tmp_path / "x.csv")
    columns = TableColumns.of_table(table, "id,city,always", None)
    values = columns.values_of(table, "x")
    with pytest.raises(NonFiniteError, match="remove these rows, or fill them in") as caught:
        columns.rows_to_keep(values, "x", trains=False)
    assert "--missing" not in str(caught.value)
    dropping = TableColumns.of_table(table, "id,city,always", "drop")
    with pytest.raises(
        DataFileError, match=r"every row has a missing value, most of them in column height.*--drop height"
    ):
        dropping.rows_to_keep(values[:2], "x")


def test_names_with_commas_and_decimal_commas(tmp_path):
    (tmp_path / "x.csv").write_text('a,"b, x",c\n1,2,3\n')
    assert numbers_of_columns('"b, x",c', 3, "--drop", opened_table(tmp_path / "x.csv").names) == (1, 2)
    with pytest.raises(InvalidArgumentError, match='which are a, "b, x", c'):
        numbers_of_columns("b", 3, "--drop", opened_table(tmp_path / "x.csv").names)
    (tmp_path / "y.csv").write_text("a;b\n0,5;1\n")
    with pytest.raises(DataFileError, match=r"'0,5' in column a is not a number\. Write numbers with a decimal point"):
        opened_table(tmp_path / "y.csv").numbers()


def test_numbers_of_columns():
    assert numbers_of_columns("b,-1,0", 4, "--x", ("a", "b", "c", "d")) == (1, 3, 0)
    with pytest.raises(InvalidArgumentError, match="twice"):
        numbers_of_columns("b,1", 4, "--x", ("a", "b", "c", "d"))
    with pytest.raises(InvalidArgumentError, match=r"2 columns have the name a. Give their numbers, which are 0, 2\."):
        numbers_of_columns("a", 3, "--x", ("a", "b", "a"))


def test_messages_name_the_columns_that_are_left(tmp_path):
    written(tmp_path / "x.csv")
    columns = TableColumns.of_table(opened_table(tmp_path / "x.csv"), "city,id", None)
    with pytest.raises(InvalidArgumentError, match=r"names, which are age, height, always; got 'id'\."):
        columns.placed("id", "--condition")


def test_parquet_and_csv_hold_the_same(tmp_path):
    values = np.random.default_rng(0).standard_normal((20, 2))
    try:
        write_array(tmp_path / "x.parquet", values, ("a", "b"))
    except MissingDependencyError as error:
        assert "iresnet-core[parquet]" in str(error)  # noqa: PT017
        pytest.skip("pyarrow is not installed")
    write_array(tmp_path / "x.csv", values, ("a", "b"))
    for name in ("x.parquet", "x.csv"):
        table = opened_table(tmp_path / name)
        assert table.names == ("a", "b")
        np.testing.assert_array_equal(table.values, values)
    with open(tmp_path / "bad.parquet", "wb") as file:
        file.write(b"no table")
    with pytest.raises(DataFileError, match="cannot be read"):
        opened_table(tmp_path / "bad.parquet")


def test_three_commands_on_a_table(tmp_path):
    pytest.importorskip("torch")
    written(tmp_path / "x.csv", gaps=4)
    run = tmp_path / "run"
    quick = ("--steps", 4, "--blocks", 1, "--hidden", 8, "--evaluation-samples", 20, "--no-tensorboard")
    options = ("--drop", "id,city,always", "--missing", "drop")
    result = iresnet("train", tmp_path / "x.csv", "--out", run, *quick, *options)
    assert result.exit_code == 0, result.output
    assert "3 of 5 columns are left out" in result.stdout
    assert "4 of 200 rows have missing values" in result.stdout
    scored = iresnet("score", run, tmp_path / "x.csv", "--out", tmp_path / "scores.csv")
    assert scored.exit_code == 0, scored.output
    assert "196 samples" in scored.stdout
    rows = list(csv.DictReader((tmp_path / "scores.csv").read_text().splitlines()))
    assert [int(row["sample"]) for row in rows] == list(range(4, 200))  # with their numbers in the file
    drawn = iresnet("sample", run, "-n", 20, "--picture", tmp_path / "samples.png")
    assert drawn.exit_code == 0, drawn.output
    assert (run / "samples.csv").read_text().splitlines()[0] == "age,height"
    again = iresnet("score", run, run / "samples.csv")
    assert again.exit_code == 0, again.output
