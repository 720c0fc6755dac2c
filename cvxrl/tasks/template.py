"""Templates: from a bare prompt to the text that the policy continues."""

from __future__ import annotations

from typing import Any

from cvxrl.errors import Problem, UserError
from cvxrl.recipe.task import TaskSpec

_QWEN_MATH_SYSTEM = r"Please reason step by step, and put your final answer within \boxed{}."


def render(prompt: str, spec: TaskSpec, tokenizer: Any) -> str:
    """Return the text that the policy continues.

    Args:
        prompt: the bare problem of an Example.
        spec: names the template, the system message and the instruction.
        tokenizer: the policy's transformers tokenizer; only the template `chat` uses it.

    Raises:
        UserError: the template is `chat` and the tokenizer has none, or its template refuses the messages.
    """
    text = f"{prompt}\n{spec.instruction}" if spec.instruction else prompt
    match spec.template:
        case "none":
            return text
        case "question-answer":
            return f"Question: {text}\nAnswer:"
        case "qwen-math":
            system = _QWEN_MATH_SYSTEM if spec.system is None else spec.system
            turns = (("system", system), ("user", text))
            return "".join(f"<|im_start|>{who}\n{said}<|im_end|>\n" for who, said in turns) + "<|im_start|>assistant\n"
        case "chat":
            return _chat(text, spec.system, tokenizer)


def _chat(text: str, system: str | None, tokenizer: Any) -> str:
    if not getattr(tokenizer, "chat_template", None):
        raise UserError(
            Problem(
                "the policy's tokenizer has no chat template",
                key="task.template",
                remedy="set task.template to none or question-answer, or use an instruction-tuned policy",
            )
        )
    messages = [{"role": "user", "content": text}]
    if system is not None:
        messages.insert(0, {"role": "system", "content": system})
    try:
        rendered = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    except Exception as error:
        # Templates are programs; several refuse system messages by raising an error of the template engine.
        message = f"the tokenizer's chat template refuses the messages: {error}"
        remedy = "remove task.system, or choose another template"
        raise UserError(Problem(message, key="task.template", remedy=remedy)) from error
    return str(rendered)
