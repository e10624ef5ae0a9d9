import pytest

from hpt_mlflow.data.labels import check_labels
from hpt_mlflow.data.sources import open_dataset
from hpt_mlflow.errors import HptError


def rows_of(header, *columns):
    """A table of four images with these columns, each a text of four values."""
    rows = zip(*(column.split() for column in columns), strict=True)
    return header + "\n" + "".join(f"{i + 1}.png,{','.join(row)}\n" for i, row in enumerate(rows))


@pytest.mark.parametrize("column", ["label", "Class", "CATEGORY", "target", "class_name"])
def test_a_column_of_classes_is_known_by_its_name(table, column):
    dataset = open_dataset(table(rows_of(f"path,{column},fold", "b a b a", "0 1 0 1")))
    assert dataset.classes == ("a", "b")
    assert dataset.labels.tolist() == [1, 0, 1, 0]
    assert dataset.unlabelled_because == ""


def test_a_column_of_another_name_is_asked_for(table):
    dataset = open_dataset(table(rows_of("path,species,fold", "b a b a", "0 1 0 1")) + "?label_column=species")
    assert dataset.classes == ("a", "b")
    assert dataset.labels.tolist() == [1, 0, 1, 0]
    assert open_dataset(dataset.uri).digest == dataset.digest


def test_a_column_that_is_asked_for_goes_before_others(table):
    assert open_dataset(table(rows_of("path,label,kind", "b a b a", "x y y y")) + "?label_column=kind").classes == (
        "x",
        "y",
    )


def test_a_column_is_found_however_unicode_composes_its_name(table):
    assert open_dataset(table("path,e\u0301\n1.png,a\n2.png,b\n") + "?label_column=\u00e9").classes == ("a", "b")
    assert open_dataset(table("path,\u00e9\n1.png,1\n2.png,0\n") + "?labels=e\u0301").classes == ("\u00e9",)


def test_every_row_needs_the_class_that_is_asked_for(table):
    with pytest.raises(HptError, match="line 3 of .* has no 'kind'"):
        open_dataset(table("path,kind\n1.png,a\n2.png,\n") + "?label_column=kind")


COUNTING = "fold Fold index id width x y w h xmin score is_valid truncated fold_2 cv bbox_x img_id".split()


@pytest.mark.parametrize("column", [*COUNTING, "Unnamed: 0"])
def test_what_keeps_count_of_images_is_not_a_label(table, column):
    dataset = open_dataset(table(rows_of(f"path,{column}", "0 1 1 0")))
    assert dataset.labels is None
    assert open_dataset(table(rows_of(f"path,A,{column}", "1 0 0 1", "0 1 1 0"))).classes == ("A",)


def test_numbers_of_classes_are_proposed_as_classes_and_not_taken_for_a_label(table):
    dataset = open_dataset(table(rows_of("path,class_id", "0 1 1 0")))
    assert dataset.labels is None
    assert "csv:FILE?label_column=class_id" in dataset.unlabelled_because


def test_a_label_with_a_number_behind_it_stays_a_label(table):
    assert open_dataset(table(rows_of("path,grade_2,paid", "0 1 1 0", "1 0 1 0"))).classes == ("grade_2", "paid")


def test_the_unnamed_index_of_pandas_is_not_a_label(table):
    dataset = open_dataset(table(",path,A\n0,1.png,1\n1,2.png,0\n"))
    assert dataset.names == ["1.png", "2.png"]
    assert dataset.classes == ("A",)


@pytest.mark.parametrize("flags", [1, 2])
def test_few_columns_of_1_and_0_are_not_labels_beside_what_may_be_classes(table, flags):
    names = [f"flag{i}" for i in range(flags)]
    dataset = open_dataset(table(rows_of(",".join(["path,species", *names]), "b a b a", *["0 1 0 1"] * flags)))
    assert dataset.labels is None
    assert "csv:FILE?label_column=species" in dataset.unlabelled_because
    assert f"csv:FILE?labels={','.join(names)} for columns of 1 and 0" in dataset.unlabelled_because


@pytest.mark.parametrize("words", ["p q r s", "all all all all", "7 8 7 8", "0.5 1e3 0.5 1e3"])
def test_words_that_cannot_be_classes_leave_the_labels(table, words):
    assert open_dataset(table(rows_of("path,other,A", words, "0 1 0 1"))).classes == ("A",)


def test_three_columns_of_1_and_0_are_labels_as_in_chexpert(table):
    dataset = open_dataset(table(rows_of("path,Sex,A,B,C", "f m f m", "0 1 0 1", "0 0 1 1", "1 1 0 0")))
    assert dataset.classes == ("A", "B", "C")


def test_why_there_are_no_labels_names_the_columns_that_are_there(table):
    dataset = open_dataset(table(rows_of("path,species", "b a b a")))
    assert dataset.labels is None
    with pytest.raises(HptError) as caught:
        check_labels(dataset, dataset.split(0))
    assert str(caught.value).startswith(
        f"data: {dataset.uri} has no labels; none of its columns path, species is called label, class, category, "
        "target or classname; write csv:FILE?label_column=species"
    )
    assert "\n" not in str(caught.value)


def test_an_empty_column_of_classes_is_named(table):
    dataset = open_dataset(table("path,label\n1.png,\n2.png,\n"))
    assert dataset.labels is None
    assert "its column 'label' is empty" in dataset.unlabelled_because


def test_the_column_that_is_proposed_can_be_written_as_it_is(table):
    uri = table(rows_of('path,"kind, & 100%?"', "b a b a"))
    proposed = open_dataset(uri).unlabelled_because.split("csv:FILE")[1].removesuffix(", or ")
    assert open_dataset(uri + proposed).classes == ("a", "b")
