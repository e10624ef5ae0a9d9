import pytest
from refusals import assert_refused

from hpt_mlflow.data.sources import open_dataset

PLAIN = "path{s}label{s}note\n1.png{s}dog{s}x\n2.png{s}cat{s}y\n"


def assert_dog_and_cat(dataset):
    assert dataset.names == ["1.png", "2.png"]
    assert dataset.classes == ("cat", "dog")
    assert dataset.labels.tolist() == [1, 0]


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
def test_any_usual_separator_is_found(table, separator):
    assert_dog_and_cat(open_dataset(table(PLAIN.format(s=separator))))


@pytest.mark.parametrize("other", [",", ";", "\t", "|"])
@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
def test_a_quoted_value_may_hold_any_separator(table, separator, other):
    text = 'path{s}label{s}"a{o}note"\n1.png{s}"dog{o}big"{s}"{o}"\n2.png{s}"cat{o}big"{s}\n'
    dataset = open_dataset(table(text.format(s=separator, o=other)))
    assert dataset.classes == (f"cat{other}big".replace("\t", "\\t"), f"dog{other}big".replace("\t", "\\t"))


@pytest.mark.parametrize(
    ("text", "classes"),
    [
        ("path,label,a;b\n1.png,dog,x;y\n2.png,cat,z\n", ("cat", "dog")),
        ("path;label;a,b\n1.png;dog;x,y\n2.png;cat;,\n", ("cat", "dog")),
        ("path;label\n1.png;a,b\n2.png;c,d\n", ("a,b", "c,d")),
        ("a|b,path,label\nx|y,1.png,dog\nx|y,2.png,cat\n", ("cat", "dog")),
    ],
)
def test_the_separator_that_gives_most_columns_counts(table, text, classes):
    dataset = open_dataset(table(text))
    assert dataset.names == ["1.png", "2.png"]
    assert dataset.classes == classes


def test_one_column_stays_one(table):
    dataset = open_dataset(table("path\n1;x.png\n2|y.png\n", images=("1;x.png", "2|y.png")))
    assert dataset.names == ["1;x.png", "2|y.png"]
    assert dataset.labels is None


@pytest.mark.parametrize(
    ("separator", "name"), [(",", "comma"), (";", "semicolon"), ("\t", "tab"), ("|", "vertical bar")]
)
def test_a_wrong_number_of_values_names_the_separator(table, separator, name):
    assert_refused(
        table(PLAIN.format(s=separator) + f"3.png{separator}dog\n"),
        "line 4",
        f"2 values for 3 columns, separated by {name}",
    )


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_encodings_and_line_ends_of_excel_are_read(table, encoding, end):
    text = PLAIN.format(s=";").replace("dog", "dög").replace("\n", end)
    assert open_dataset(table(text.encode(encoding))).classes == ("cat", "dög")


def test_utf_16_of_the_other_byte_order_is_read(table):
    assert_dog_and_cat(open_dataset(table(b"\xfe\xff" + PLAIN.format(s="\t").encode("utf-16-be"))))


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16-le", "utf-32", "shift-jis"])
def test_other_encodings_are_refused(table, encoding):
    text = PLAIN.format(s=",").replace("dog", "犬" if encoding == "shift-jis" else "dög")
    assert_refused(table(text.encode(encoding)), "some.csv is not UTF-8", "in UTF-8")


def test_utf_16_that_is_cut_off_is_refused(table):
    assert_refused(table(PLAIN.format(s=",").encode("utf-16")[:-1]), "line 3", "not UTF-8")


@pytest.mark.parametrize("mark", ["sep=;", '"sep=;"', "SEP=;"])
def test_the_first_line_of_excel_names_the_separator(table, mark):
    text = f"{mark}\r\n" + PLAIN.format(s=";").replace("label", '"label"').replace("note", "a,b")
    assert_dog_and_cat(open_dataset(table(text)))
    assert_refused(table(text + "3.png;dog\n"), "line 5", "semicolon")


def test_lines_without_values_are_passed_over(table):
    assert_dog_and_cat(open_dataset(table("\n" + PLAIN.format(s=",").replace("2.png", "\n , ,\n,,,,\n2.png"))))


def test_a_table_without_column_names_keeps_its_first_image(table):
    assert_dog_and_cat(open_dataset(table("1.png,dog\n2.png,cat\n")))
    assert_dog_and_cat(open_dataset(table("dog;1.png\ncat;2.png\n")))


def test_without_column_names_a_path_is_known_by_its_file(table, tmp_path, write_image):
    write_image(tmp_path / "data" / "x.png").rename(tmp_path / "data" / "scan1")
    dataset = open_dataset(table("scan1,dog\n2.png,cat\n"))
    assert dataset.names == ["scan1", "2.png"]
    assert dataset.classes == ("cat", "dog")


def test_without_column_names_a_path_is_known_by_its_suffix(table):
    dataset = open_dataset(table("gone.png,dog\n2.png,cat\n"))
    assert dataset.names == ["gone.png", "2.png"]


def test_without_column_names_a_missing_first_image_is_kept_beside_rows_without_a_suffix(table):
    dataset = open_dataset(table("gone.png,dog\n2.png,cat\nscan,dog\n"))
    assert dataset.names == ["gone.png", "2.png", "scan"]
    assert dataset.classes == ("cat", "dog")


def test_one_column_without_a_name_is_unlabelled(table):
    dataset = open_dataset(table("1.png\n2.png\n3.png\n"))
    assert dataset.names == ["1.png", "2.png", "3.png"]
    assert dataset.labels is None
    assert "label" in dataset.unlabelled_because


def test_a_single_line_is_an_image_too(table):
    assert open_dataset(table("1.png,dog\n")).names == ["1.png"]


def test_a_single_line_is_an_image_also_when_it_is_missing(table):
    assert_refused(table("gone.png,dog\n"), "no image of", "'gone.png'")


@pytest.mark.parametrize("text", ["1.png;dog;7\n2.png;cat;8\n", "1.png;3.png\n2.png;4.png\n"])
def test_more_columns_need_names(table, text):
    assert_refused(table(text), "line 1", "'1.png'", "path;label")


def test_a_name_of_a_column_is_not_taken_for_an_image(table, tmp_path, write_image):
    write_image(tmp_path / "data" / "x.png").rename(tmp_path / "data" / "path")
    assert_dog_and_cat(open_dataset(table(PLAIN.format(s=","))))
