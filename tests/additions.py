"""What one writes to add something to the package: for each kind, the files that are touched and what goes into them.

Each thing is made up and does something that nothing else does, so that a test can tell that it was used.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Edit:
    """Text that is written into a file in front of the only place where ``before`` stands; a new file without one."""

    path: str
    text: str
    before: str | None = None

    def apply(self, checkout: Path) -> None:
        file = checkout / self.path
        whole = file.read_text(encoding="utf-8") if file.exists() else None
        file.write_text(self.applied(whole), encoding="utf-8")

    def applied(self, whole: str | None) -> str:
        """The file's text afterwards; None stands for no file."""
        if self.before is None or whole is None:
            assert self.before is whole is None, self.path
            return self.text
        count = whole.count(self.before)
        assert count == 1, f"{self.path}: {self.before!r} stands there {count} times"
        return whole.replace(self.before, self.text + self.before)


SPEC = '''class BoundedSpec(Section):
    """Policy gradient with bounded advantages."""

    needs: ClassVar[frozenset[Need]] = frozenset({"advantages"})
    coupling: ClassVar[Coupling] = "token"
    zero_advantage: ClassVar[ZeroAdvantage] = "no gradient"
    minimum: ClassVar[Minimum] = "none"
    equation: ClassVar[str] = "L = -clip(A, -bound, bound) log pi(a)"
    kind: Literal["bounded"] = Field("bounded", description="Bounded advantage times log-probability.")
    bound: PositiveFloat = Field(0.5, description="Largest size of an advantage.")


'''
FUNCTION = '''def bounded(batch: TokenBatch, spec: BoundedSpec) -> ObjectiveOutput:
    """-clip(A, -bound, bound) log pi(a) per token. Needs ``advantages_N``."""
    advantages_N = batch.require("advantages_N").clamp(-spec.bound, spec.bound)
    log_probs_N = action_log_probs(batch.logits_NV, batch.actions_N)
    return ObjectiveOutput(-advantages_N * log_probs_N, {"bounded/size": advantages_N.abs()})


'''
RECIPE = """# Policy gradient with bounded advantages.
# Reduction: `token-mean`, as that of math_reinforce.
# Expect: what math_reinforce does, more slowly.
extends: math_base.yaml
name: math_bounded
objective: {kind: bounded}
"""
BY_HAND = """            case BoundedSpec():
                bounded = max(-exact(spec.bound), min(a, exact(spec.bound)))
                pair = -bounded * u[n], -bounded
"""
OBJECTIVE = (
    Edit("cvxrl/recipe/objective.py", SPEC, "class CallableObjective("),
    Edit("cvxrl/recipe/objective.py", "    | BoundedSpec\n", "    | CallableObjective,"),
    Edit(
        "cvxrl/objectives/policy_gradient.py",
        "from cvxrl.recipe.objective import BoundedSpec\n",
        "from cvxrl.recipe.objective import AwrSpec",
    ),
    Edit("cvxrl/objectives/policy_gradient.py", FUNCTION, "OBJECTIVES: Objectives ="),
    Edit("cvxrl/objectives/policy_gradient.py", '"bounded": bounded, ', '"grpo": grpo,'),
    Edit("recipes/math_bounded.yaml", RECIPE),
    Edit(
        "tests/objective_references.py",
        "    BoundedSpec,\n",
        "    CispoSpec,\n",
    ),
    Edit("tests/objective_references.py", BY_HAND, "            case CispoSpec():"),
    Edit(
        "docs/method.md", "| `bounded` | `-clip(A, -bound, bound) log pi(a)` | | PSD for A > 0 |\n", "| `awr` | `-min("
    ),
)

ADVANTAGE_SPEC = '''class SignAdvantage(AdvantageSection):
    """Sign of the reward's distance from the group mean."""

    needs_group: ClassVar[bool] = True
    kind: Literal["sign"] = Field("sign", description="Sign of (R - group mean).")


'''
ADVANTAGE = (
    Edit("cvxrl/recipe/advantage.py", ADVANTAGE_SPEC, "class GaeAdvantage("),
    Edit("cvxrl/recipe/advantage.py", "    | SignAdvantage\n", "    | GaeAdvantage\n"),
    Edit("cvxrl/advantages.py", "    SignAdvantage,\n", ")\n\n\ndef compute_advantages("),
    Edit(
        "cvxrl/advantages.py",
        "        case SignAdvantage():\n            return _centered(rewards_PG).sign()\n",
        "        case RlooAdvantage():",
    ),
    Edit("tests/test_advantages.py", "    SignAdvantage,\n", ")\n\nREWARDS ="),
    Edit(
        "tests/test_advantages.py",
        "        (SignAdvantage(), [[1, -1, -1, 1], [1, -1, -1, -1], [0.0] * 4]),\n",
        "        (RlooAdvantage(), [[",
    ),
    Edit("docs/method.md", "| `sign` | sign of `R - mean_G` |\n", "| `rloo` | `R - mean"),
)

SINK = (
    Edit(
        "cvxrl/recipe/monitoring.py",
        '''class CountSink(Section):
    """How many steps were told, in a file."""

    kind: Literal["count"] = Field("count", description="`steps.txt`: the number of steps.")


''',
        "SinkSpec = Annotated[",
    ),
    Edit("cvxrl/recipe/monitoring.py", "CountSink | ", "CsvSink | TensorboardSink"),
    Edit(
        "cvxrl/runs/sink_kinds.py",
        '''class Counter(NullSink):
    """steps.txt: the number of steps that were told."""

    told = 0

    def step(self, record: Mapping[str, float]) -> None:
        """Count."""
        assert self.run_dir is not None
        self.told += 1
        write_text(self.run_dir / "steps.txt", str(self.told))


''',
        "def _csv(",
    ),
    Edit(
        "cvxrl/runs/sink_kinds.py",
        """def _count(spec: Any, key: str, recipe: Recipe, run_dir: Path) -> Opener:
    return lambda: Counter(run_dir)


""",
        "SINKS: Final",
    ),
    Edit("cvxrl/runs/sink_kinds.py", '"count": _count,\n    ', '"csv": _csv'),
    Edit(
        "tests/runs/test_sinks.py",
        """def test_a_counting_sink(tmp_path: Path) -> None:
    counter = sink_openers(tiny("math_grpo", sinks("kind: count")), tmp_path)["logging.sinks.0"]()
    counter.step({})
    counter.step({})
    assert (tmp_path / "steps.txt").read_text() == "2"


""",
        "def test_every_kind_of_sink_has_its_class(",
    ),
)

FIGURE = (
    Edit(
        "cvxrl/comparison/figures/scores.py",
        '''def seed_counts(c: Comparison) -> Figure:
    """Number of scored seeds of each method."""
    figure, ((axis,),) = new_figure(1, 1, 2.0)
    axis.bar([s.label for s in c.summaries], [len(s.scores) for s in c.summaries])
    return figure


''',
        "def improvement_intervals(",
    ),
    Edit(
        "cvxrl/comparison/figures/gallery.py",
        "from cvxrl.comparison.figures.scores import seed_counts\n",
        "from cvxrl.comparison.figures.scores import",
    ),
    Edit(
        "cvxrl/comparison/figures/gallery.py",
        '    ("Seeds", seed_counts, "Scored seeds."),\n',
        '    ("Against the baseline",',
    ),
    Edit(
        "docs/compare.md",
        "| Seeds | scored seeds per method | `scores.seed_counts` |\n",
        "| Against the baseline |",
    ),
    Edit(
        "tests/comparison/test_compare_page.py",
        """def test_seeds_are_counted(two: Comparison) -> None:
    (axis,) = next(shown.figure for shown in all_figures(two) if shown.title == "Seeds").axes
    assert [bar.get_height() for bar in axis.patches] == [len(s.scores) for s in two.summaries]


""",
        "def test_one_method_has_no_pair_to_draw(",
    ),
)

SOURCE = (
    Edit(
        "cvxrl/recipe/task.py",
        '''class CountingSource(Section):
    """The number after another."""

    kind: Literal["counting-up"] = Field("counting-up", description="The number after another.")
    held_out: float = Field(0.2, ge=0, lt=1, description="Share of all prompts that training never sees.")


''',
        "SourceSpec = Annotated[",
    ),
    Edit("cvxrl/recipe/task.py", "CountingSource | ", "ArithmeticSource | CarryingSumsSource | Reason"),
    Edit(
        "cvxrl/tasks/counting_up.py",
        '''"""The number after another."""

from __future__ import annotations

from cvxrl.recipe.task import CountingSource
from cvxrl.tasks.base import Example, Source
from cvxrl.tasks.finite_task import FiniteTask


def load_rows(spec: CountingSource) -> list[Example]:
    """All examples."""
    return [Example(str(i), f"{i}+1?", str(i + 1)) for i in range(1, 99)]


def load(spec: CountingSource, seed: int) -> FiniteTask:
    """Split them."""
    return FiniteTask.split("counting up", load_rows(spec), spec.held_out, seed)


SOURCE = Source(load, load_rows)
''',
    ),
    Edit(
        "tests/tasks/test_tasks.py",
        """def test_counting_up() -> None:
    task = load_task(spec({"kind": "counting-up", "held_out": 0}), seed=0)
    assert task.train_size == 98 and all(task.train(i).answer == str(int(task.train(i).id) + 1) for i in range(98))


""",
        "def test_every_kind_of_source_is_found_by_its_name(",
    ),
)

ADDITIONS = {
    "an objective": OBJECTIVE,
    "an advantage": ADVANTAGE,
    "a sink": SINK,
    "a figure": FIGURE,
    "a task source": SOURCE,
}
