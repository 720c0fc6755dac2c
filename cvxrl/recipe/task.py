"""The task as a recipe section: where prompts come from, how they are put, and how replies are graded."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, PositiveInt, field_validator, model_validator

from cvxrl.recipe.base import NEUTRAL, FunctionName, Section
from cvxrl.recipe.expand import PATH
from cvxrl.recipe.extract import ExtractSpec, NoExtract, check_pattern
from cvxrl.recipe.reward import CallableReward, ExactReward, RewardSpec

LOCAL_SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".parquet")


def is_data_file(path: str) -> bool:
    """Tell whether `path` names a local file of rows, by its ending in any case."""
    return path.lower().endswith(LOCAL_SUFFIXES)


class ArithmeticSource(Section):
    """Sums of one-digit numbers, with step-by-step demonstrations of which some steps are wrong."""

    kind: Literal["arithmetic"] = Field("arithmetic", description="Sums of digits, generated.")
    terms: tuple[int, int] = Field((3, 6), description="Fewest and most digits in a sum (each digit is 0 to 9).")
    corrupt: float = Field(
        0.2,
        ge=0,
        le=1,
        description="Chance that a step of a demonstration has a wrong result. Used by `sft` only; the "
        "answer that replies are graded against is always right.",
    )
    held_out: float = Field(0.1, gt=0, lt=1, description="Share of all prompts that training never sees.")

    @field_validator("terms")
    @classmethod
    def _ordered(cls, terms: tuple[int, int]) -> tuple[int, int]:
        return _check_terms(terms)


class CarryingSumsSource(Section):
    """Sums of one-digit numbers, whose demonstrations forget carries more often than not."""

    kind: Literal["carrying-sums"] = Field(
        "carrying-sums", description="All sums of some lengths, no prompt twice; demonstrations forget carries."
    )
    terms: tuple[int, int] = Field(
        (3, 6), description="Fewest and most digits in a sum (each digit is 0 to 9), at most 7; lengths take turns."
    )
    forget_carry: float = Field(
        0.6,
        ge=0,
        le=1,
        description="Chance that a step of a demonstration in which a carry arises writes a result that is 10 too "
        "small. Used by `sft` only; the answer that replies are graded against is always right.",
    )
    held_out: float = Field(0.1, gt=0, lt=1, description="Share of the prompts of each length held out.")

    @field_validator("terms")
    @classmethod
    def _ordered(cls, terms: tuple[int, int]) -> tuple[int, int]:
        return _check_terms(terms, most=7)


MadeSource = ArithmeticSource | CarryingSumsSource


def space(source: MadeSource) -> int:
    """Different prompts of a source that makes sums, those held out included."""
    low, high = source.terms
    return sum(10**length for length in range(low, high + 1))


def _check_terms(terms: tuple[int, int], most: int | None = None) -> tuple[int, int]:
    low, high = terms
    if low < 2 or high < low:
        raise ValueError(f"needs 2 <= fewest <= most, got [{low}, {high}]")
    if most is not None and high > most:
        raise ValueError(f"all sums are listed, and of {high} digits there are {10.0**high:.0e}; at most {most}")
    return terms


class ReasoningGymSource(Section):
    """Any data set of the reasoning-gym package."""

    kind: Literal["reasoning-gym"] = Field("reasoning-gym", description="Problems of the package reasoning-gym.")
    dataset: str = Field(min_length=1, description="Name of the reasoning-gym data set, such as `gcd`.")
    config: dict[str, Any] = Field({}, description="Options of that data set, as reasoning-gym names them.")
    size: PositiveInt = Field(
        10_000,
        description="Problems are drawn from the first `size` that reasoning-gym generates with seed 0.",
    )
    held_out: float = Field(0.1, gt=0, lt=1, description="Share of all prompts that training never sees.")

    @field_validator("config")
    @classmethod
    def _numbering_is_ours(cls, config: dict[str, Any]) -> dict[str, Any]:
        taken = sorted({"seed", "size"} & config.keys())
        if taken:
            raise ValueError(f"{' and '.join(taken)} cannot be set here: use `seed` and `task.source.size` instead")
        return config


class DatasetSource(Section):
    """Rows of a local file or of a data set on the Hugging Face Hub."""

    kind: Literal["dataset"] = Field("dataset", description="Rows of a file or of a Hub data set.")
    path: Annotated[str, PATH] = Field(
        min_length=1,
        description="A .jsonl, .json, .csv, .tsv or .parquet file, or the id of a data set on the Hub. Values of a "
        "file arrive as written (1, 2.50, 007, 2024-05-01, true), in UTF-8; a row that lacks a field named below is "
        "refused.",
    )
    config_name: str | None = Field(None, description="Configuration (subset) of a Hub data set.")
    revision: str | None = Field(None, description="Revision of a Hub data set; none means the default branch.")
    split: str = Field("train", description="Split to train on (Hub only; a local file is one split).")
    eval_path: Annotated[str | None, PATH] = Field(None, description="Local file with the held-out rows.")
    eval_split: str | None = Field(None, description="Split of the Hub data set that holds the held-out rows.")
    held_out: float = Field(
        0.1,
        ge=0,
        lt=1,
        description="Share of the prompts held out, chosen by a hash of the prompt; ignored where "
        "`eval_path` or `eval_split` names the held-out rows. 0 holds out nothing.",
    )
    prompt_field: str = Field("prompt", description="Field with the prompt.")
    answer_field: str | None = Field(
        "answer", description="Field with the right answer; none if there is none, as in preference data."
    )
    answer_pattern: str | None = Field(
        None,
        description="Regular expression with one group that picks the answer out of `answer_field` "
        "(last match), such as `#### (.+)`; none takes the whole field.",
    )
    demonstration_field: str | None = Field(None, description="Field with a full reply to imitate (`sft` only).")
    chosen_field: str | None = Field(None, description="Field with the preferred reply (`dpo` and `qrm` only).")
    rejected_field: str | None = Field(None, description="Field with the rejected reply (`dpo` and `qrm` only).")

    @property
    def is_file(self) -> bool:
        """Whether `path` names a local file rather than a data set on the Hub."""
        return is_data_file(self.path)

    @field_validator("answer_pattern")
    @classmethod
    def _one_group(cls, pattern: str | None) -> str | None:
        return pattern if pattern is None else check_pattern(pattern)

    @model_validator(mode="after")
    def _one_kind_of_place(self) -> Self:
        wrong = []
        if self.eval_path is not None and self.eval_split is not None:
            wrong.append("`eval_path` and `eval_split` both name the held-out rows; give only one of them")
        if self.is_file and (self.config_name or self.revision or self.eval_split):
            wrong.append(
                "`config_name`, `revision` and `eval_split` are of Hub data sets, but `path` is a file; leave them out"
            )
        if self.eval_path is not None and not is_data_file(self.eval_path):
            wrong.append(f"`eval_path` is no local file of rows; it must end in one of {', '.join(LOCAL_SUFFIXES)}")
        if (self.chosen_field is None) != (self.rejected_field is None):
            wrong.append("only one of `chosen_field` and `rejected_field` is named; give both, or neither")
        if wrong:
            raise ValueError("\n".join(wrong))
        return self


class CallableSource(Section):
    """Examples made by a function of yours."""

    kind: Literal["callable"] = Field("callable", description="Examples returned by a python function.")
    function: FunctionName = Field(
        description="`module:function`; called once with `kwargs`, returns a sequence of mappings "
        "with `prompt`, `answer` and optionally `demonstration`, `id`, `info`. The working directory is searched too."
    )
    kwargs: dict[str, Any] = Field({}, description="Keyword arguments of the function.")
    held_out: float = Field(
        0.1,
        ge=0,
        lt=1,
        description="Share of the prompts held out, chosen by a hash of the prompt; 0 holds out nothing.",
    )


SourceSpec = Annotated[
    ArithmeticSource | CarryingSumsSource | ReasoningGymSource | DatasetSource | CallableSource,
    Field(discriminator="kind"),
]


class GradingSpec(Section):
    """What happens with right answers that cannot be used and with replies that cannot be graded."""

    golds: Literal["warn", "refuse", "ignore"] = Field(
        "warn",
        description="What to do about right answers that no reply can match, found when the data are loaded: name "
        "their rows and go on, stop, or do not look. Where no answer at all can be matched, both of the first stop.",
    )
    max_error_share: float = Field(
        0.5,
        ge=0,
        le=1,
        description="Largest share of the last `over` replies that the grader may fail on (out of time or memory, "
        "ended, an exception, an unusable right answer; not a reply that is no mathematics). Above it the command ends "
        "with exit code 2 and the run counts as failed. 1 never stops.",
    )
    over: PositiveInt = Field(
        64, description="Replies that the share is taken over; at the end of a batch a quarter of them is enough."
    )


class TaskSpec(Section):
    """Prompts and their verifier: source -> template -> (the policy's reply) -> extract -> reward."""

    source: SourceSpec = Field(description="Where prompts and answers come from.")
    template: Literal["none", "chat", "question-answer", "qwen-math"] = Field(
        "none",
        description="How a prompt is put to the policy: as it is; through the tokenizer's chat template; as "
        "`Question: ... Answer:`; or in the fixed ChatML text that Qwen-Math models were evaluated with.",
    )
    special_tokens: bool = Field(
        True,
        description="Whether the templates `none` and `question-answer` begin with what the tokenizer itself puts "
        "before a text, such as a token that begins it. The other two write their own.",
    )
    unknown_characters: Literal["refuse", "allow"] = Field(
        "refuse",
        description="A prompt, or a reply to learn from, with characters for which the tokenizer has no token is "
        "refused; or allowed, and reaches the policy without them or with its unknown token.",
    )
    system: str | None = Field(None, description="System message (`chat` and `qwen-math` only).")
    instruction: str = Field("", description="Line added below every prompt, inside the template.")
    extract: ExtractSpec = Field(NoExtract(), description="What of a reply is graded.")
    reward: RewardSpec = Field(ExactReward(), description="How it is graded.")
    grading: Annotated[GradingSpec, NEUTRAL] = Field(GradingSpec(), description="Where grading fails.")

    @property
    def not_in_digests(self) -> dict[str, Any]:
        """Fields that a digest of the task leaves out: those that change no verdict, and new ones at their defaults.

        Digests of version 0.1 then still name the same questions.
        """
        new = {"special_tokens", "unknown_characters"}
        at_default = (name for name in new if getattr(self, name) == type(self).model_fields[name].default)
        return {"grading": True, "reward": {"noise"}, **dict.fromkeys(at_default, True)}

    @model_validator(mode="after")
    def _parts_agree(self) -> Self:
        wrong = []
        if self.system is not None and self.template in ("none", "question-answer"):
            wrong.append(f"`system`: template `{self.template}` has no system message; use chat or qwen-math")
        if self.reward.kind == "reasoning-gym" and self.source.kind != "reasoning-gym":
            wrong.append(f"`reward.kind`: reasoning-gym cannot score source `{self.source.kind}`; use another")
        if not isinstance(self.reward, CallableReward) and self.reward.correct <= self.reward.incorrect:
            wrong.append("`reward.correct` must be greater than `reward.incorrect`")
        if isinstance(self.reward, CallableReward) and self.reward.noise.kind != "none":
            wrong.append(
                "`reward.noise`: a function's rewards have no `correct` and `incorrect` to exchange; add the noise in "
                "the function, or take a reward of another kind"
            )
        if wrong:
            raise ValueError("\n".join(wrong))
        return self
