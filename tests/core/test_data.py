"""Blocks of tokens: packed, labelled, ordered, and held-out text kept apart from training text."""

from pathlib import Path

import pytest
import torch

from ouroboros_core.data import UNIT, align, pack, prepare, rows_of_step
from ouroboros_core.errors import UserError
from ouroboros_core.losses import IGNORE
from ouroboros_core.settings import DataSettings
from ouroboros_core.testing import tiny_tokenizer

END = 0


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer()


@pytest.fixture
def text(tmp_path, tokenizer, monkeypatch):
    """Prepare text from a folder of documents, with held-out text from another."""
    monkeypatch.chdir(tmp_path)

    def prepared(documents, heldout=("near",), length=8, heldout_tokens=400, validation_tokens=400):
        data = DataSettings(train=folder("source", documents), heldout=list(heldout), length=length)
        return prepare(
            data, tokenizer, train_tokens=100, heldout_tokens=heldout_tokens, validation_tokens=validation_tokens
        )

    return prepared


def folder(name, documents):
    """Write documents into a folder of the present one."""
    for number, document in enumerate(documents):
        path = Path(name, f"{number:03}.txt")
        path.parent.mkdir(exist_ok=True)
        path.write_text(document)
    return name


def sentences(count, words=30):
    return [" ".join(f"number {number} of {word}" for word in range(words)) for number in range(count)]


# Packing and labels


@pytest.mark.parametrize("length", [2, 3, 7])
def test_every_token_is_predicted_exactly_once(length):
    documents = [list(range(1, 12)), list(range(12, 20)), [20]]
    stream = [token for document in documents for token in [*document, END]]
    blocks = pack(documents, length, END, "here")
    ids, labels = align(blocks)
    whole = (len(stream) - 1) // length * length
    assert ids.flatten().tolist() == stream[:whole]
    assert labels.flatten().tolist() == stream[1 : whole + 1]


def test_neighbouring_blocks_share_one_token():
    blocks = pack([list(range(50))], 6, None, "here")
    assert blocks.shape == (8, 7)
    assert torch.equal(blocks[1:, 0], blocks[:-1, -1])


def test_an_end_token_stands_behind_every_document():
    (block,) = pack([[5, 6], [7], [8]], 6, END, "here").tolist()
    assert block == [5, 6, END, 7, END, 8, END]


def test_without_an_end_token_documents_follow_each_other():
    assert pack([[5, 6], [7]], 2, None, "here").tolist() == [[5, 6, 7]]


def test_too_little_text_for_one_sequence_is_refused():
    with pytest.raises(UserError, match="data here holds 3 tokens to train on: one sequence takes 9"):
        pack([[5, 6]], 8, END, "here")


def test_a_label_is_the_next_id():
    blocks = torch.randint(1, 100, (3, 9))
    ids, labels = align(blocks)
    assert ids.shape == labels.shape == (3, 8)
    for t in range(7):
        assert torch.equal(labels[:, t], ids[:, t + 1])
    assert torch.equal(labels[:, 7], blocks[:, 8])


def test_ignored_places_are_ids_a_model_can_read_and_labels_nobody_scores():
    ids, labels = align(torch.tensor([[4, 5, IGNORE, IGNORE]]))
    assert ids.tolist() == [[4, 5, 0]]
    assert labels.tolist() == [[5, IGNORE, IGNORE]]


# Order


@pytest.mark.parametrize(("batch", "total"), [(2, 6), (4, 7), (5, 3), (1, 1)])
def test_an_epoch_reads_every_block_exactly_once(batch, total):
    read = [row for step in range(2 * total) for row in rows_of_step(step, batch, total, seed=3)]
    assert len(read) == 2 * batch * total
    for start in range(0, len(read), total):
        assert sorted(read[start : start + total]) == list(range(total))


def test_the_rows_of_a_step_depend_on_nothing_else():
    alone = rows_of_step(17, 4, 23, seed=1)
    torch.manual_seed(99)
    for step in range(40):
        rows_of_step(step, 4, 23, seed=step)
    assert rows_of_step(17, 4, 23, seed=1) == alone


def test_epochs_and_seeds_differ():
    assert rows_of_step(0, 30, 30, seed=0) != rows_of_step(1, 30, 30, seed=0)
    assert rows_of_step(0, 30, 30, seed=0) != rows_of_step(0, 30, 30, seed=1)


def test_ordering_leaves_the_callers_generator_alone():
    torch.manual_seed(5)
    first = torch.rand(3)
    torch.manual_seed(5)
    rows_of_step(0, 2, 31, seed=77)
    assert torch.equal(torch.rand(3), first)


# Domains


def test_rows_of_a_domain_never_cross_documents(text, tokenizer):
    held = ["Now the people of this nation know.", "They have what we do not.", "Our union is strong."]
    folder("other", held)
    (domain,) = text(sentences(6), heldout=["other"], length=5).heldout
    for number, document in enumerate(held):
        tokens = tokenizer(document)["input_ids"]
        rows = domain.blocks[domain.unit == number]
        read = [token for row in rows for token in row[1:].tolist() if token != IGNORE]
        assert [rows[0, 0].item(), *read] == tokens
    assert domain.documents == len(held)


def test_behind_the_end_of_a_document_nothing_is_scored(text):
    folder("other", ["The state of our union is strong and the people know what to do now."])
    (domain,) = text(sentences(6), heldout=["other"], length=7).heldout
    last = domain.blocks[-1]
    end = int((last != IGNORE).sum())
    assert 1 < end < 8
    assert (last[end:] == IGNORE).all()
    assert (domain.blocks[:-1] != IGNORE).all()
    assert domain.tokens == 7 * (len(domain.blocks) - 1) + end - 1


def test_one_book_is_resampled_by_blocks_of_a_fixed_number_of_tokens(text):
    folder("book", [" ".join(sentences(30))])
    (domain,) = text(sentences(6), heldout=["book"], length=256, heldout_tokens=3 * UNIT).heldout
    assert domain.documents == 1
    assert domain.unit.tolist() == [unit for unit in range(3) for _ in range(UNIT // 256)]
    assert domain.tokens == 3 * UNIT


def test_several_documents_share_the_tokens_evenly(text):
    folder("other", sentences(4, words=50))
    (domain,) = text(sentences(6), heldout=["other"], heldout_tokens=42).heldout
    shares = torch.zeros(4).index_add(0, domain.unit, (domain.blocks[:, 1:] != IGNORE).sum(1).float())
    assert shares.tolist() == [10, 10, 10, 10]


def test_a_domain_of_more_documents_than_tokens_still_holds_text(text):
    folder("many", sentences(60, words=3))
    (domain,) = text(sentences(6), heldout=["many"], heldout_tokens=40).heldout
    assert 0 < domain.tokens <= 40


# Apart


def test_near_is_text_of_the_training_source_that_is_not_trained_on(text, tokenizer):
    prepared = text(sentences(20), length=40, heldout_tokens=4000)
    stream = [*prepared.train[:1, 0].tolist(), *prepared.train[:, 1:].flatten().tolist()]
    trained = {tuple(stream[start : start + 20]) for start in range(len(stream))}
    beginnings = {tuple(tokenizer(document)["input_ids"][:20]) for document in sentences(20)}
    apart = {tuple(domain.blocks[0, :20].tolist()) for domain in (*prepared.heldout, prepared.validation)}
    assert len(apart) == 2
    assert apart == beginnings - trained


def test_a_held_out_document_that_is_trained_on_is_refused(text):
    documents = sentences(2)
    folder("other", ["This is of no one else.", documents[1]])
    with pytest.raises(UserError, match=r"held-out text 'other': document 001\.txt is trained on as well"):
        text(documents, heldout=["other"])


def test_a_source_judged_on_itself_is_refused(text):
    with pytest.raises(UserError, match="is trained on as well"):
        text(sentences(1), heldout=["source"])


@pytest.mark.parametrize("name", ["train", "validation"])
def test_the_parts_of_the_training_source_are_no_held_out_text(text, name):
    folder(name, ["This is of no one else."])
    with pytest.raises(UserError, match=f"'{name}' means a part of the training source"):
        text(sentences(3), heldout=[name])
    assert text(sentences(3), heldout=[f"./{name}"]).heldout[0].tokens


def test_held_out_text_of_one_token_is_refused(text, tmp_path):
    (tmp_path / "one.txt").write_text("I")
    with pytest.raises(UserError, match=r"'.*one\.txt' holds fewer than two tokens"):
        text(sentences(3), heldout=[str(tmp_path / "one.txt")])


def test_rows_longer_than_a_unit_are_units(text, tmp_path):
    (tmp_path / "book.txt").write_text("the state of our union is strong " * 3000)
    documents = [f"{sentence} {'and more ' * 3000}" for sentence in sentences(3)]
    (book,) = text(documents, length=2048, heldout=[str(tmp_path / "book.txt")], heldout_tokens=8192).heldout
    assert book.unit.tolist() == list(range(len(book.blocks)))
    assert book.units == "blocks of 2,048 tokens"


@pytest.mark.parametrize("count", [1, 2])
def test_a_source_too_small_to_keep_some_apart_is_refused_with_advice(text, count):
    say = rf"data source is {count} document\(s\): too few to keep some apart\. .*--set data\.heldout="
    with pytest.raises(UserError, match=say):
        text(sentences(count))


def test_a_source_too_small_to_keep_some_apart_is_judged_on_other_text(text):
    folder("other", ["This is of no one else."])
    prepared = text(sentences(1), heldout=["other"])
    assert prepared.validation is None
    assert [domain.name for domain in prepared.heldout] == ["other"]


def test_too_little_text_to_train_on_is_refused_by_the_name_of_its_source(text):
    with pytest.raises(UserError, match=r"data source holds .* one sequence takes 5001"):
        text(sentences(3, words=2), length=5000)


# Fingerprint


def test_the_fingerprint_changes_with_the_text_and_with_nothing_else(text):
    folder("other", ["This is of no one else."])
    once, again = text(sentences(6), heldout=["near", "other"]), text(sentences(6), heldout=["near", "other"], length=9)
    assert once.fingerprint == again.fingerprint
    assert set(once.fingerprint) == {"train", "validation", "near", "other"}
    folder("other", ["This is of no one else!"])
    changed = text(sentences(6), heldout=["near", "other"]).fingerprint
    assert {name for name in changed if changed[name] != once.fingerprint[name]} == {"other"}
