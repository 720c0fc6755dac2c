"""Sources, splits, demonstrations, templates and the task section of a recipe."""

import importlib
import json
import math
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import numpy as np
import pytest
from annotated_types import Gt
from pydantic import TypeAdapter, ValidationError

from cvxrl.errors import UserError
from cvxrl.recipe.base import Section, kind_of, section_classes
from cvxrl.recipe.load import load_recipe
from cvxrl.recipe.task import ArithmeticSource, DatasetSource, SourceSpec, TaskSpec
from cvxrl.rollout.prompts import render
from cvxrl.tasks import Example, Task, dataset, load_questions, load_task
from cvxrl.tasks.arithmetic import ArithmeticTask, demonstrate
from cvxrl.tasks.base import Source, draw_example, is_held_out
from cvxrl.tasks.finite_task import FiniteTask
from cvxrl.tasks.sources import source_of


def spec(source: dict[str, Any], **rest: Any) -> TaskSpec:
    return TypeAdapter(TaskSpec).validate_python({"source": source, **rest})


def refusal(source: dict[str, Any]) -> str:
    with pytest.raises(UserError) as caught:
        load_task(spec(source), seed=0)
    return str(caught.value)


def steps(chain: str) -> list[tuple[int, int, int]]:
    """Read `4+7=11+9=20` as [(4, 7, 11), (11, 9, 20)]."""
    first, *rest = re.split(r"\+", chain)
    running, read = int(first), []
    for part in rest:
        term, result = map(int, part.split("="))
        read.append((running, term, result))
        running = result
    return read


def test_every_kind_of_source_is_found_by_its_name() -> None:
    """A new source is its section in the recipe and a module called as its kind is."""
    for section in section_classes(SourceSpec):
        source = source_of(section.model_construct(kind=kind_of(section)))
        assert callable(source.load), section
        # What may hold out nothing must be able to say all there is.
        bounds = section.model_fields["held_out"].metadata
        assert (source.load_rows is None) == (Gt(0) in bounds), section


def test_a_new_source_is_its_section_and_its_module(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two files: nothing else has to learn of it, to train on it or to be asked about it."""

    class CountingSource(Section):
        kind: Literal["counting-up"] = "counting-up"
        held_out: float = 0.0

    def rows(section: CountingSource) -> list[Example]:
        return [Example(str(i), f"after {i}", str(i + 1)) for i in range(20)]

    module: Any = ModuleType("cvxrl.tasks.counting_up")
    module.SOURCE = Source(lambda section, seed: FiniteTask.split("counting", rows(section), 0.0, seed), rows)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    task = TaskSpec.model_construct(source=CountingSource())
    made = load_task(task, seed=0)
    assert made.train_size == 20 and made.train(0).prompt.startswith("after")
    assert len(load_questions(task, 5, whole=True, exactly=True)) == 5
    with pytest.raises(UserError, match="holds no questions out"):
        load_questions(task, 5, whole=False, exactly=True)


# --- arithmetic -------------------------------------------------------------------------------------------


def test_a_demonstration_without_mistakes_is_the_chain_of_partial_sums() -> None:
    assert demonstrate([4, 7, 9, 3], 0.0, np.random.default_rng(0)) == "4+7=11+9=20+3=23"


def test_a_wrong_step_is_off_by_one_to_nine_and_carried_on() -> None:
    rng = np.random.default_rng(1)
    offsets = set()
    for _ in range(300):
        chain = demonstrate([0, 1, 9, 2], 1.0, rng)
        read = steps(chain)
        assert [term for _, term, _ in read] == [1, 9, 2]
        for running, term, result in read:
            assert result >= 0 and 1 <= abs(result - running - term) <= 9
            offsets.add(result - running - term)
    assert offsets == {*range(-9, 0), *range(1, 10)}


def test_the_rate_of_wrong_steps_is_the_recipe_s() -> None:
    task = ArithmeticTask(ArithmeticSource(corrupt=0.2), seed=3)
    read = [s for i in range(1500) for s in steps(task.train(i).demonstration or "")]
    wrong = sum(result != running + term for running, term, result in read)
    # Five standard deviations of the binomial: fails for 0.15 and 0.25, by chance once in a million seeds.
    assert abs(wrong - 0.2 * len(read)) < 5 * math.sqrt(len(read) * 0.2 * 0.8)
    assert len(read) > 4000


def test_answers_are_right_and_lengths_are_those_asked_for() -> None:
    task = ArithmeticTask(ArithmeticSource(terms=(2, 4), corrupt=1.0), seed=0)
    lengths = set()
    for example in (task.train(i) for i in range(300)):
        digits = [int(d) for d in example.prompt.removesuffix("?").split("+")]
        assert example.answer == str(sum(digits)) and all(0 <= d <= 9 for d in digits)
        lengths.add(len(digits))
    assert lengths == {2, 3, 4}


def test_corruption_changes_demonstrations_but_not_prompts() -> None:
    clean, dirty = (ArithmeticTask(ArithmeticSource(corrupt=c), seed=5) for c in (0.0, 1.0))
    pairs = [(clean.train(i), dirty.train(i)) for i in range(50)]
    assert all(a.prompt == b.prompt and a.demonstration != b.demonstration for a, b in pairs)


# --- splits and order -------------------------------------------------------------------------------------


def finite(seed: int, n: int = 40) -> FiniteTask:
    return FiniteTask.split("t", [Example(str(i), f"question {i}", str(i)) for i in range(n)], 0.25, seed)


def gym(seed: int) -> Task:
    pytest.importorskip("reasoning_gym")
    return load_task(spec({"kind": "reasoning-gym", "dataset": "gcd", "config": {"max_value": 20}}), seed)


MAKERS = {
    "arithmetic": lambda s: ArithmeticTask(ArithmeticSource(terms=(2, 2)), s),
    "gym": gym,
    "finite": finite,
}


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_training_and_held_out_prompts_never_meet(make: Any) -> None:
    task = make(0)
    held = {task.held_out(i).prompt for i in range(task.held_out_size or 200)}
    train = {task.train(i).prompt for i in range(600)}
    assert held and train and not held & train


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_examples_depend_on_seed_and_index_alone(make: Any) -> None:
    one, same, other = make(1), make(1), make(2)
    forwards = [one.train(i) for i in range(20)]
    assert forwards == [same.train(i) for i in reversed(range(20))][::-1]
    assert forwards != [other.train(i) for i in range(20)]
    assert [one.held_out(i) for i in range(5)] == [other.held_out(i) for i in range(5)]
    assert one.fingerprint == other.fingerprint


def test_the_share_held_out_is_the_share_asked_for() -> None:
    held = sum(is_held_out(f"{i}+{j}?", 0.1) for i in range(100) for j in range(100))
    assert abs(held - 1000) < 5 * math.sqrt(10_000 * 0.1 * 0.9)


def test_every_epoch_visits_every_example_once_in_another_order() -> None:
    task = finite(0)
    n = len({task.train(i).id for i in range(200)})
    epochs = [[task.train(e * n + i).id for i in range(n)] for e in range(3)]
    assert all(len(set(e)) == n for e in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


def test_a_training_row_that_is_also_held_out_is_left_out() -> None:
    train = [Example("0", "a", "1"), Example("1", "b", "2")]
    task = FiniteTask("t", train, [Example("0", "b", "2")], seed=0)
    assert {task.train(i).prompt for i in range(10)} == {"a"}
    with pytest.raises(UserError, match="no training example is left"):
        FiniteTask("t", train, train, seed=0)


def test_a_source_of_a_single_prompt_is_refused_and_not_waited_for() -> None:
    only = Example("0", "same", "1")
    side = is_held_out("same", 0.1)
    with pytest.raises(UserError, match="too few different prompts"):
        draw_example(lambda rng: only, [0], 0.1, held_out=not side)


def test_fingerprints_tell_data_apart() -> None:
    assert finite(0).fingerprint != finite(0, n=41).fingerprint
    plain, corrupt = (ArithmeticTask(ArithmeticSource(corrupt=c), 0).fingerprint for c in (0.2, 0.3))
    assert plain != corrupt


# --- reasoning-gym ----------------------------------------------------------------------------------------


def test_reasoning_gym_answers_belong_to_their_questions() -> None:
    task = gym(0)
    for i in range(20):
        example = task.train(i)
        numbers = map(int, re.findall(r"\d+", example.prompt))
        assert example.answer == str(math.gcd(*numbers))


def test_reasoning_gym_mistakes_name_key_and_remedy() -> None:
    pytest.importorskip("reasoning_gym")
    source: dict[str, Any] = {"kind": "reasoning-gym", "dataset": "chain_sums"}
    assert "did you mean `chain_sum`" in refusal(source)
    assert "task.source.dataset" in refusal(source)
    source["dataset"] = "gcd"
    text = refusal(source | {"config": {"max_valeu": 3, "min_valu": 1}})
    assert "task.source.config.max_valeu" in text and "`max_value`" in text and "task.source.config.min_valu" in text
    assert "max_value must be" in refusal(source | {"config": {"min_value": 30, "max_value": 20}})
    assert "refuses these options" in refusal(source | {"config": {"max_value": "many"}})


def test_a_missing_package_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    text = refusal({"kind": "reasoning-gym", "dataset": "gcd"})
    assert "reasoning-gym" in text and 'pip install "cvxrl[tasks]"' in text


# --- files and the Hub ------------------------------------------------------------------------------------

ROWS = [{"q": f"{i} plus {i}?", "a": f"thinking #### {2 * i:,}", "demo": f"it is {2 * i}"} for i in range(500, 540)]


@pytest.fixture
def rows_file(tmp_path: Path) -> Path:
    path = tmp_path / "sums.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in ROWS))
    return path


def file_source(path: Path, **more: Any) -> dict[str, Any]:
    return {"kind": "dataset", "path": str(path), "prompt_field": "q", "answer_field": "a"} | more


def test_rows_of_a_file_become_examples(rows_file: Path) -> None:
    more = {"answer_pattern": "#### (.+)", "demonstration_field": "demo"}
    task = load_task(spec(file_source(rows_file, **more)), seed=0)
    assert task.held_out_size and task.held_out_size < 20
    example = next(e for e in map(task.train, range(60)) if e.id == "7" or e.id == "8")
    number = int(example.id) + 500
    assert example.prompt == f"{number} plus {number}?"
    assert example.answer == f"{2 * number:,}" and example.demonstration == f"it is {2 * number}"


def test_parquet_gives_what_jsonl_gives(rows_file: Path, tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    pandas.DataFrame(ROWS).to_parquet(tmp_path / "sums.parquet")
    one, other = (load_task(spec(file_source(p)), 0) for p in (rows_file, tmp_path / "sums.parquet"))
    assert one.fingerprint == other.fingerprint


def test_a_changed_file_is_read_anew(rows_file: Path) -> None:
    before = load_task(spec(file_source(rows_file)), 0).fingerprint
    rows_file.write_text(rows_file.read_text().replace("#### 1,000", "#### 1,001"))
    assert load_task(spec(file_source(rows_file)), 0).fingerprint != before


def test_a_file_of_its_own_may_hold_the_held_out_rows(rows_file: Path, tmp_path: Path) -> None:
    held = tmp_path / "held.jsonl"
    held.write_text("".join(json.dumps(r) + "\n" for r in ROWS[:3]))
    task = load_task(spec(file_source(rows_file, eval_path=str(held))), seed=0)
    prompts = {r["q"] for r in ROWS[:3]}
    assert task.held_out_size == 3 and {task.held_out(i).prompt for i in range(3)} == prompts
    assert not prompts & {task.train(i).prompt for i in range(100)}


def test_data_mistakes_name_the_file_and_the_fields(rows_file: Path, tmp_path: Path) -> None:
    assert "there is no file" in refusal(file_source(tmp_path / "none.jsonl"))
    text = refusal(file_source(rows_file, prompt_field="question", answer_field="solution"))
    assert "`question`" in text and "`solution`" in text and text.count("fields are q, a, demo") == 2
    assert str(rows_file) in text
    assert "matches nothing" in refusal(file_source(rows_file, answer_pattern="=> (.+)"))
    empty = tmp_path / "empty.jsonl"
    empty.write_text("")
    assert "empty" in refusal(file_source(empty))
    broken = tmp_path / "broken.jsonl"
    broken.write_text('{"q": 1, "a": \n{{{')
    assert "cannot be read as jsonl" in refusal(file_source(broken))
    hole = tmp_path / "hole.jsonl"
    hole.write_text('{"q": "x", "a": "1"}\n{"q": "y", "a": null}\n')
    assert "row 1: field `a` is empty" in refusal(file_source(hole))


def test_a_hub_out_of_reach_is_the_user_s_to_fix(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = importlib.import_module("datasets")

    def fail(*args: Any, **kwargs: Any) -> Any:
        raise ConnectionError("no route to host")

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(UserError, match=r"the Hub cannot be reached.*\n.*local file"):
        dataset.load(DatasetSource(path="owner/name"), seed=0)


# --- functions --------------------------------------------------------------------------------------------

MODULE = """
from cvxrl.tasks import Example
def rows(n, start=0): return [{"prompt": f"say {i}", "answer": i} for i in range(start, n)]
def examples(): return [Example(str(i), f"p{i}", "a") for i in range(40)]
def text(): return "not examples"
def odd(): return [{"prompt": "p", "anwser": "a"}]
def broken(): return 1 / 0
constant = 3
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "made_here.py").write_text(MODULE)
    (tmp_path / "made_badly.py").write_text("import no_such_thing_anywhere\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name in ("made_here", "made_badly"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return "made_here"


def test_a_function_in_the_working_directory_makes_examples(module: str) -> None:
    source = {"kind": "callable", "function": f"{module}:rows", "kwargs": {"n": 60}}
    task = load_task(spec(source), seed=0)
    example = task.train(0)
    assert example.prompt == f"say {example.answer}" and task.held_out_size
    assert load_task(spec({"kind": "callable", "function": f"{module}:examples"}), 0).train(0).answer == "a"


@pytest.mark.parametrize(
    ("function", "said"),
    [
        ("nowhere_at_all:f", "there is no module `nowhere_at_all`"),
        ("made_badly:f", "no_such_thing_anywhere"),
        ("made_here:row", "did you mean `rows`"),
        ("made_here:constant", "is not a function"),
        ("made_here:text", "returned str"),
        ("made_here:odd", "no `answer`, an unknown `anwser`"),
        ("made_here:broken", "ZeroDivisionError: division by zero (.*made_here.py, line 7)"),
        ("made_here:rows", "missing 1 required positional argument: 'n'"),
    ],
)
def test_function_mistakes(module: str, function: str, said: str) -> None:
    text = refusal({"kind": "callable", "function": function})
    assert re.search(said.replace("(", r"\(").replace(")", r"\)"), text) and "task.source.function" in text


# --- templates and the recipe section ---------------------------------------------------------------------


class ChatTokenizer:
    chat_template = "yes"

    def apply_chat_template(self, messages: list[dict[str, str]], tokenize: bool, add_generation_prompt: bool) -> str:
        assert not tokenize and add_generation_prompt
        return "".join(f"[{m['role']}]{m['content']}" for m in messages) + "[assistant]"


@pytest.mark.parametrize(
    ("rest", "text"),
    [
        ({}, "1+1?"),
        ({"instruction": "Be brief."}, "1+1?\nBe brief."),
        ({"template": "question-answer"}, "Question: 1+1?\nAnswer:"),
        ({"template": "chat"}, "[user]1+1?[assistant]"),
        ({"template": "chat", "system": "S", "instruction": "I"}, "[system]S[user]1+1?\nI[assistant]"),
        (
            {"template": "qwen-math", "system": "S"},
            "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\n1+1?<|im_end|>\n<|im_start|>assistant\n",
        ),
    ],
)
def test_templates(rest: dict[str, Any], text: str) -> None:
    assert render("1+1?", spec({"kind": "arithmetic"}, **rest), ChatTokenizer()) == text


def test_a_tokenizer_without_chat_template_is_refused() -> None:
    with pytest.raises(UserError, match="no chat template"):
        render("1+1?", spec({"kind": "arithmetic"}, template="chat"), object())


@pytest.mark.parametrize(
    "wrong",
    [
        {"source": {"kind": "arithmetic", "terms": [5, 3]}},
        {"source": {"kind": "arithmetic", "terms": [1, 3]}},
        {"source": {"kind": "arithmetic", "corupt": 0.1}},
        {"source": {"kind": "arithmetic", "held_out": 0.0}},
        {"source": {"kind": "reasoning-gym", "dataset": "gcd", "config": {"seed": 3}}},
        {"source": {"kind": "dataset", "path": "x.jsonl", "eval_split": "test"}},
        {"source": {"kind": "dataset", "path": "x.jsonl", "eval_path": "y.txt"}},
        {"source": {"kind": "callable", "function": "no colon"}},
        {"source": {"kind": "arithmetic"}, "system": "unheard"},
        {"source": {"kind": "arithmetic"}, "reward": {"kind": "reasoning-gym"}},
        {"source": {"kind": "arithmetic"}, "reward": {"kind": "exact", "correct": 0.0}},
        {"source": {"kind": "arithmetic"}, "extract": {"kind": "regex", "pattern": "("}},
        {"source": {"kind": "arithmetic"}, "extract": {"kind": "regex", "pattern": "no group"}},
        {"source": {"kind": "arithmetic"}, "extract": {"kind": "tag", "tag": "<answer>"}},
    ],
)
def test_the_recipe_section_refuses(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        TypeAdapter(TaskSpec).validate_python(wrong)


def test_every_mistake_about_where_rows_are_is_told_with_its_own_remedy() -> None:
    source = "{kind: dataset, path: x.jsonl, eval_path: y.txt, eval_split: test, chosen_field: good}"
    with pytest.raises(UserError) as refused:
        load_recipe("math_grpo", [f"task.source={source}"])
    assert [(p.message.split()[0], p.remedy) for p in refused.value.problems] == [
        ("`eval_path`", "give only one of them"),
        ("`config_name`,", "leave them out"),
        ("`eval_path`", "it must end in one of .jsonl, .json, .csv, .tsv, .parquet"),
        ("only", "give both, or neither"),
    ]


def test_neither_the_section_nor_the_tasks_import_torch() -> None:
    heavy = "{'torch', 'datasets', 'transformers'}"
    code = f"import sys, cvxrl.tasks, cvxrl.tasks.sandbox; print({heavy} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
