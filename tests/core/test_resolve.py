"""Resolving: layers over defaults, one-line refusals, and settings that come back from a file as they went in."""

import random
from types import ModuleType

import pytest
import tomli
import tomli_w
from pydantic import Field

import ouroboros_plugins
from ouroboros_core import NoOptions, Options, hookimpl
from ouroboros_core.contracts import Part, Slot
from ouroboros_core.errors import UserError
from ouroboros_core.host import OURS, PluginHost
from ouroboros_core.resolve import assignment, read_file, resolve
from ouroboros_core.settings import TABLES


class WeightOptions(Options):
    """Of an imagined third-party objective."""

    weight: float = Field(1.0, description="of this term")


def theirs():
    plugin = ModuleType("theirs")
    parts = [
        Part(Slot.OBJECTIVE, "ponder", WeightOptions, lambda options, facts: None, "Called as one of ours."),
        Part(Slot.GATE, "open", NoOptions, lambda options, facts: None, "A gate."),
    ]
    plugin.ouroboros_parts = hookimpl(lambda: parts)
    return plugin


@pytest.fixture(scope="module")
def host():
    host = PluginHost()
    host.add("builtin", lambda: ouroboros_plugins, distribution=OURS)
    host.add("theirs", theirs, distribution="their-parts")
    return host


def resolved(host, *texts):
    """Settings from layers written as TOML."""
    return resolve(host, [tomli.loads(text) for text in texts])


def chosen(settings, slot):
    return [choice.name for choice in settings.parts[slot]]


def options(settings, slot, index=0):
    return settings.parts[slot][index].options


# Precedence


def test_nothing_said_gives_every_default(host):
    settings = resolve(host, [])
    assert settings.tables().keys() == {*TABLES, *(slot.value for slot in Slot)}
    assert all(chosen(settings, slot) == [host.default(slot).name] for slot in Slot)
    assert all(getattr(settings, name) == kind() for name, kind in TABLES.items())


def test_the_later_layer_wins(host):
    file, flags, assigned = {"train": {"steps": 1, "batch": 3}}, {"train": {"steps": 2}}, assignment("train.steps=4")
    assert resolve(host, [file]).train.steps == 1
    assert resolve(host, [file, flags]).train.steps == 2
    settings = resolve(host, [file, flags, assigned])
    assert (settings.train.steps, settings.train.batch) == (4, 3)


def test_options_of_a_part_add_up_over_the_layers(host):
    settings = resolved(host, "halter.use = 'act'\nhalter.bias = -1", "halter.epsilon = 0.1", "halter.bias = -3")
    assert (options(settings, Slot.HALTER).bias, options(settings, Slot.HALTER).epsilon) == (-3.0, 0.1)


def test_naming_another_part_drops_the_options_of_the_old_one(host):
    settings = resolved(host, "[gate]\nuse = 'sigmoid'\nbias = -1", "gate.use = 'none'")
    assert chosen(settings, Slot.GATE) == ["none"]
    back = resolved(host, "gate.bias = -1", "gate.use = 'none'", "gate.use = 'sigmoid'")
    assert options(back, Slot.GATE).bias == -2.0


def test_naming_the_same_part_again_keeps_its_options(host):
    assert options(resolved(host, "gate.bias = -1", "gate.use = 'sigmoid'"), Slot.GATE).bias == -1.0


def test_use_comes_before_the_options_of_its_own_table_wherever_it_stands(host):
    settings = resolve(host, [{"halter": {"bias": -1, "use": "act"}}])
    assert options(settings, Slot.HALTER).bias == -1.0


def test_a_layer_is_left_as_it_was(host):
    layer = {"objective": {"use": ["ponder", "next-token"], "ponder": {"weight": 0.5}}}
    resolve(host, [layer, assignment("objective.ponder.weight=2")])
    assert layer == {"objective": {"use": ["ponder", "next-token"], "ponder": {"weight": 0.5}}}


def test_an_empty_table_changes_nothing(host):
    assert resolve(host, [{"gate": {}, "train": {}}]) == resolve(host, [])


def test_the_config_of_a_base_is_laid_key_by_key(host):
    file = "[base.config]\nmodel_type = 'llama'\nhidden_size = 32\nrope_parameters = {rope_theta = 1e4, kind = 'a'}"
    settings = resolve(
        host,
        [
            tomli.loads(file),
            assignment("base.config.hidden_size=64"),
            assignment("base.config.rope_parameters.rope_theta=5"),
        ],
    )
    told = {"model_type": "llama", "hidden_size": 64, "rope_parameters": {"rope_theta": 5, "kind": "a"}}
    assert settings.base.config == told
    assert (settings.base.name, settings.base.dtype) == ("smollm2-135m", "bfloat16")
    same(settings, resolved(host, tomli_w.dumps(settings.tables())))


def test_a_config_laid_over_another_leaves_it_as_it_was(host):
    layer = {"base": {"config": {"model_type": "llama"}}}
    resolve(host, [layer, assignment("base.config.hidden_size=64")])
    assert layer == {"base": {"config": {"model_type": "llama"}}}


def test_an_empty_config_sets_back_to_the_pretrained_base(host):
    layer = {"base": {"config": {"model_type": "llama", "rope_parameters": {"rope_theta": 5}}}}
    settings = resolve(host, [layer, assignment("base.config={}")])
    assert settings.base.config is None
    assert "config" not in settings.tables()["base"]
    again = resolve(host, [layer, assignment("base.config={}"), assignment("base.config.model_type=mistral")])
    assert again.base.config == {"model_type": "mistral"}
    inner = resolve(host, [layer, assignment("base.config.rope_parameters={}")])
    assert inner.base.config == {"model_type": "llama", "rope_parameters": {}}


def test_a_config_that_is_no_table_is_refused(host):
    with pytest.raises(UserError, match=r"^base\.config = 'llama': .*dict"):
        resolve(host, [assignment("base.config=llama")])
    with pytest.raises(UserError, match=r"^base\.config = 'llama': .*dict"):
        resolve(host, [{"base": {"config": {"hidden_size": 3}}}, assignment("base.config=llama")])


# Slots that take several parts


def test_a_list_names_several_parts_and_each_has_a_table(host):
    settings = resolved(host, "objective.use = ['next-token', 'ponder']\nobjective.ponder.weight = 0.5")
    assert chosen(settings, Slot.OBJECTIVE) == ["next-token", "ponder"]
    assert [options(settings, Slot.OBJECTIVE, index).weight for index in (0, 1)] == [1.0, 0.5]


def test_a_part_that_stays_in_the_list_keeps_its_options(host):
    both = "objective.use = ['next-token', 'ponder']\nobjective.ponder.weight = 0.5"
    settings = resolved(host, both, "objective.use = ['ponder', 'distill']")
    assert chosen(settings, Slot.OBJECTIVE) == ["ponder", "distill"]
    assert options(settings, Slot.OBJECTIVE).weight == 0.5


@pytest.mark.parametrize("key", ["weight", "next-token.weight"])
def test_with_one_part_its_options_need_no_name(host, key):
    assert options(resolve(host, [assignment(f"objective.{key}=3")]), Slot.OBJECTIVE).weight == 3.0


def test_with_several_parts_an_option_without_a_name_is_refused(host):
    say = r"objective\.weight: the slot has several parts, .*: objective\.next-token, objective\.ponder"
    with pytest.raises(UserError, match=say):
        resolved(host, "objective.use = ['next-token', 'ponder']", "objective.weight = 3")


def test_a_qualified_name_has_a_table_of_its_own(host):
    text = "objective.use = ['ponder', 'their-parts:ponder']\nobjective.'their-parts:ponder'.weight = 7"
    settings = resolved(host, text)
    assert [options(settings, Slot.OBJECTIVE, index).weight for index in (0, 1)] == [0.01, 7.0]


USES = {
    "several": ("gate.use = ['sigmoid', 'none']", r"gate\.use = .*: this slot takes one part"),
    "twice": ("adapter.use = ['none', 'none']", r"adapter\.use = .*: a part is named twice"),
    "empty": ("objective.use = []", r"objective\.use = \[\]: expected the name of a part"),
    "number": ("gate.use = 3", r"gate\.use = 3: expected the name of a part"),
    "list of numbers": ("objective.use = [1]", r"objective\.use = \[1\]: expected the name of a part"),
    "table": ("gate.use = {name = 'none'}", r"gate\.use = .*: expected the name of a part"),
}


@pytest.mark.parametrize(("text", "message"), USES.values(), ids=USES)
def test_a_use_that_names_no_part_is_refused(host, text, message):
    with pytest.raises(UserError, match=message):
        resolved(host, text)


# Refusals

REFUSED = {
    "table": ("gaet.bias = 1", r"^gaet: no such table of settings\. Did you mean 'gate'\? Known: base, data"),
    "part": ("gate.use = 'sigmod'", r"^no gate is called 'sigmod'\. Did you mean 'sigmoid'\?"),
    "setting": ("train.step = 1", r"^train\.step: no such setting\. Did you mean 'steps'\? Known: steps"),
    "option": ("gate.bais = 1", r"^gate\.bais: no such setting\. Did you mean 'bias'\? Known: bias"),
    "option of none": ("gate = {use = 'none', bias = 1}", r"^gate\.bias: no such setting\. Known: none"),
    "option of a listed part": (
        "objective = {use = ['next-token', 'ponder'], ponder = {wieght = 1}}",
        r"^objective\.ponder\.wieght: no such setting\. Did you mean 'weight'\?",
    ),
    "no table": ("train = 3", r"^train = 3: expected a table, for example train\.key=value"),
    "no table of a slot": ("gate = 'none'", r"^gate = 'none': expected a table"),
    "word for number": ("gate.bias = 'abc'", r"^gate\.bias = 'abc': .*valid number"),
    "fraction for count": ("train.steps = 1.5", r"^train\.steps = 1\.5: .*integer"),
    "number for word": ("base.name = 3", r"^base\.name = 3: .*valid string"),
    "too small": ("train.steps = 0", r"^train\.steps = 0: .*greater than or equal to 1"),
    "not one of": ("base.dtype = 'int8'", r"^base\.dtype = 'int8': .*'bfloat16' or 'float32'"),
    "wrong item": ("data.heldout = ['near', 3]", r"^data\.heldout\.1 = 3: .*valid string"),
    "wrong name": ("run.name = '../up'", r"^run\.name = '\.\./up': .*pattern"),
    "truth for number": ("gate.bias = true", r"^gate\.bias = True: "),
    "truth for count": ("train.steps = true", r"^train\.steps = True: "),
    "text for number": ("train.steps = '3'", r"^train\.steps = '3': "),
    "no number": ("train.lr = nan", r"^train\.lr = nan: "),
    "infinite": ("train.lr = inf", r"^train\.lr = inf: "),
}


@pytest.mark.parametrize(("text", "message"), REFUSED.values(), ids=REFUSED)
def test_a_mistake_is_refused_in_one_line_that_names_it(host, text, message):
    with pytest.raises(UserError, match=message) as caught:
        resolved(host, text)
    assert "\n" not in str(caught.value)


def test_a_whole_number_will_do_for_a_fraction(host):
    assert options(resolved(host, "gate.bias = -3"), Slot.GATE).bias == -3.0


# --set and files

RIGHT = {
    "-2": -2, "0.5": 0.5, "1e-3": 1e-3, "true": True, '"two words"': "two words", "'12'": "12",
    "[1, 2]": [1, 2], '["near", "moby-dick"]': ["near", "moby-dick"], "sigmoid": "sigmoid",
    "two words": "two words", "folder/file.txt": "folder/file.txt", "a=b": "a=b", "": "", "[1": "[1",
}  # fmt: skip


@pytest.mark.parametrize(("right", "value"), RIGHT.items())
def test_the_right_side_is_a_literal_or_a_bare_word(right, value):
    assert assignment(f"gate.bias={right}") == {"gate": {"bias": value}}


def test_the_left_side_may_be_nested_and_spaced():
    assert assignment("objective.ponder.weight = 2") == {"objective": {"ponder": {"weight": 2}}}


@pytest.mark.parametrize("text", ["gate.bias", "bias=-2", "gate.=1", ".bias=1", "gate..bias=1", "=1", ""])
def test_a_malformed_assignment_is_refused(text):
    with pytest.raises(UserError, match=r"^--set .*: expected slot\.key=value, for example gate\.bias=-2$"):
        assignment(text)


def test_a_file_of_settings_is_read(tmp_path):
    (tmp_path / "run.toml").write_text("[gate]\nbias = -1\n")
    assert read_file(tmp_path / "run.toml") == {"gate": {"bias": -1}}


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"none\.toml: No such file.* Give a TOML file of settings, or none"):
        read_file(tmp_path / "none.toml")


def test_a_folder_is_no_file_of_settings(tmp_path):
    with pytest.raises(UserError, match="Is a directory"):
        read_file(tmp_path)


@pytest.mark.parametrize("content", [b"[gate\nbias = 1", b"\xff\xfe", b"a = 1\na = 2"])
def test_what_is_no_toml_is_refused(tmp_path, content):
    (tmp_path / "run.toml").write_bytes(content)
    with pytest.raises(UserError, match=r"run\.toml is no TOML: "):
        read_file(tmp_path / "run.toml")


# What is written is read back as the same


def moved(kind, dice):
    """Values other than the defaults for some fields of an options model."""
    values = {}
    for name, field in kind.model_fields.items():
        if dice.random() < 0.5 and type(field.default) in (int, float):
            values[name] = field.default + 1 if type(field.default) is int else field.default / 2
    return values


def drawn(host, seed):
    """A layer with any parts, in any number where a slot takes many, at any options."""
    dice = random.Random(seed)
    layer = {name: moved(kind, dice) for name, kind in TABLES.items()}
    for slot in Slot:
        offers = [(name, part) for record, part in host.parts(slot) for name in _names(record, part)]
        these = dice.sample(offers, dice.randint(1, min(3, len(offers))) if slot.takes_many else 1)
        filled = {name: moved(part.options, dice) for name, part in these}
        if slot.takes_many:
            layer[slot] = {"use": [*filled], **filled}
        else:
            ((name, values),) = filled.items()
            layer[slot] = {"use": name, **values}
    return layer


def _names(record, part):
    """How the part may be called: a name of ours that another took is still ours."""
    qualified = f"{record.distribution}:{part.name}"
    return [part.name, qualified] if record.builtin or part.name == "open" else [qualified]


def same(one, other):
    assert one.tables() == other.tables()
    assert one == other


@pytest.mark.parametrize("seed", range(60))
def test_any_settings_come_back_from_a_file_as_they_went_in(host, seed):
    settings = resolve(host, [drawn(host, seed)])
    same(settings, resolved(host, tomli_w.dumps(settings.tables())))


def test_optional_values_and_lists_come_back_as_they_went_in(host):
    text = """
    schedule = {use = "choice", turns = [1, 2], with_gradient = 1}
    data = {column = 'a "quoted" one', split = "test", apart = 0.2, heldout = ["near", "C:\\\\texts"]}
    train.betas = [0.8, 0.9]
    """
    settings = resolved(host, text)
    back = resolved(host, tomli_w.dumps(settings.tables()))
    same(settings, back)
    assert back.data.column == 'a "quoted" one'
    assert back.train.betas == (0.8, 0.9)


def test_unread_names_table_and_key(host):
    settings = resolved(host, "objective.use = ['next-token', 'ponder']\ndata.column = 'body'")
    settings.forget_reads()
    unread = settings.unread()
    assert {"train.steps", "gate.bias", "objective.ponder.weight", "data.column"} <= set(unread)
    assert "data.split" not in unread
    assert options(settings, Slot.GATE).bias == -2.0
    assert set(unread) - set(settings.unread()) == {"gate.bias"}
