r"""Questions whose right answers are written in unusual ways, with replies graded by hand before any program saw them.

A row: the question, its right answer as a data set might hold it, what a reply may put in its box (`\boxed{...}`) and
is right, and what is wrong. A reply that begins with a backslash and `boxed`, or has several boxes, stands as it is.
"""

from __future__ import annotations

from typing import NamedTuple


class Question(NamedTuple):
    """One question; `right` and `wrong` are boxed answers."""

    prompt: str
    gold: str
    right: tuple[str, ...]
    wrong: tuple[str, ...]


QUESTIONS = (
    Question(
        "For which x is (x - 1)(x - 2) = 0?",
        r"\boxed{1} and \boxed{2}",
        (r"1, 2", "2,1", r"\boxed{1} and \boxed{2}", r"\{1, 2\}", r"x=1 \text{ or } x=2", r"1 \text{ and } 2"),
        ("2", "1", "1,2,3", "12", r"\boxed{2} and \boxed{3}"),
    ),
    Question(
        "A line meets the axes at (0, 3) and (2, 0). What is its slope?",
        "-3./2",
        ("-3./2", r"-\frac{3}{2}", "-1.5", r"\frac{-3}{2}", "-3/2"),
        (r"\frac{3}{2}", "-2/3", "-3", "1.5"),
    ),
    Question("How many vertices has a square pyramid?", "5.", ("5", "5.", "5.0"), ("0.5", "50", "4")),
    Question(
        "A hall has 25 rows of 85 seats. How many seats are there?",
        "2{,}125",
        ("2125", "2,125", "2{,}125", r"2\,125", "2 125", r"2{,}125 \text{ seats}"),
        ("125", "2.125", "2", "250"),
    ),
    Question("What is 125 times 100?", "12 500", ("12500", "12,500", "12 500", r"12\,500"), ("500", "12", "6000")),
    Question(
        "Three of eight cups are full. Which percentage is that?",
        "37.5%",
        (r"37.5\%", "37.5", "0.375", r"\frac{3}{8}", "37.5%"),
        (r"3.75\%", "3.75", r"\frac{8}{3}", "375"),
    ),
    Question("9 of 20 tiles are red. How many percent is that?", "45", (r"45\%", "45", "45%"), (r"4.5\%", "55", "9")),
    Question(
        "Three tickets at 6 dollars each: what is the price?",
        "$18",
        ("18", r"\$18", r"18 \text{ dollars}", r"\$18.00", "18.00"),
        (r"\$1.8", "180", r"\$17"),
    ),
    Question("Seven stamps at 50 cents: how many euros?", "3.50 €", ("3.5", "€3.50", "3.50"), ("35", "350", "7")),
    Question(
        "A ribbon of 70 cm is halved. How long is each half?",
        "35 cm",
        ("35", r"35\text{ cm}", r"35\,\mathrm{cm}", "35 cm", r"35~\text{cm}"),
        ("3.5", "70", "36 cm"),
    ),
    Question(
        "Eight thirds as a mixed number?",
        "2 2/3",
        (r"\frac{8}{3}", r"2\frac{2}{3}", "8/3", "2 2/3", r"2 \frac{2}{3}"),
        (r"\frac{4}{3}", "22/3", "2.6", "4/3"),
    ),
    Question(
        "How many hours are 90 minutes?", r"1\frac{1}{2}", ("1.5", "3/2", "1 1/2", r"1\frac12"), (r"\frac12", "0.5")
    ),
    Question(
        "Where is (x - 2)(x - 5) defined under a root, if 5 itself is excluded?",
        r"(-\infty, 2] \cup (5, \infty)",
        (r"(-\infty,2]\cup(5,\infty)", r"(5,\infty)\cup(-\infty,2]", r"(-\infty, 2] ∪ (5, \infty)"),
        (r"(-\infty,2)\cup(5,\infty)", r"(-\infty,2]", r"(-\infty,5]\cup(2,\infty)"),
    ),
    Question(
        "Which values does the fractional part of a number take?",
        "[0, 1)",
        ("[0,1)", r"\left[0,1\right)", "[0, 1)"),
        ("(0,1)", "[0,1]", "[0,2)"),
    ),
    Question(
        "Where do x + y = -1 and x - y = 7 meet?",
        "(3, -4)",
        ("(3,-4)", r"\left(3, -4\right)", "(3.0, -4)"),
        ("(-4,3)", "(3,4)", "(3)", "(3,-4,0)"),
    ),
    Question(
        "Solve x + y = 11, y - x = 3.",
        "x = 4, y = 7",
        ("x=4, y=7", "y=7, x=4", "x=4,y=7"),
        ("x=7,y=4", "x=4", "x=4,y=8"),
    ),
    Question(
        "What are the square roots of 9?",
        r"\pm 3",
        (r"\pm 3", "3, -3", r"-3 \text{ and } 3", r"\pm3", r"\{-3, 3\}"),
        ("3", "-3", r"\pm 9", "3, 3"),
    ),
    Question(
        "Which primes are below 6?",
        r"\{2, 3, 5\}",
        ("2,3,5", r"\{5,3,2\}", r"2, 3, \text{ and } 5", "2, 3 and 5", r"\left\{2,3,5\right\}"),
        ("2,3", r"\{2,3,5,7\}", "235", "30"),
    ),
    Question("Six red to four blue marbles: in lowest terms?", "3:2", ("3:2", "3 : 2", r"3\!:\!2"), ("2:3", "32", "3")),
    Question(
        "A film of two hours starts at 5:30 p.m. When does it end?",
        "7:30 p.m.",
        ("7:30 p.m.", r"7:30 \text{ p.m.}", r"7:30\text{ PM}"),
        ("7:30 a.m.", "8:30 p.m.", "7:03 p.m.", "7"),
    ),
    Question(
        "What is each angle of an equilateral triangle?",
        r"60^\circ",
        ("60", r"60^{\circ}", r"60 \text{ degrees}", "60°", "60^\\circ"),
        ("6", "30", r"30^\circ"),
    ),
    Question(
        "What is the sine of 60 degrees?",
        r"\frac{\sqrt{3}}{2}",
        (r"\sqrt{3}/2", r"\sqrt{\frac{3}{4}}", r"\dfrac{\sqrt3}{2}", r"\tfrac{\sqrt{3}}{2}", r"\frac{1}{2}\sqrt{3}"),
        (r"\frac{\sqrt{2}}{3}", "0.87", r"\frac{3}{2}"),
    ),
    Question(
        "Write one hundred and twenty thousand in scientific notation.",
        r"1.2 \times 10^{5}",
        ("120000", "120{,}000", r"1.2\cdot 10^5", r"1.2 \times 10^5", "1.2e5"),
        ("1.2", "12000", r"1.2 \times 10^{6}"),
    ),
    Question(
        "For which x is x = x + 1?",
        "No solution",
        ("no solution", r"\text{No solution}", r"\text{no solution}", "No solution."),
        ("0", "1", r"\text{all } x"),
    ),
    Question(
        "Which is largest: (A) 1/2 (B) 1/3 (C) 2/3 (D) 1/4?",
        "(C)",
        ("C", r"\text{(C)}", r"\textbf{(C)}", "(C)", r"\text{C}", r"\mathrm{(C)}"),
        ("B", "(A)", r"\text{(D)}"),
    ),
    Question(
        "Which weekday follows Monday?",
        "Tuesday",
        (r"\text{Tuesday}", "Tuesday", "tuesday", r"\mathrm{Tuesday}"),
        (r"\text{Thursday}", "Monday", r"\text{Tuesday or Monday}"),
    ),
    Question(
        "Give the line of slope 2 through (0, -1).",
        "y = 2x - 1",
        ("y=2x-1", "2x-1", "y = -1 + 2x", "2x - y = 1"),
        ("y=2x+1", "x=2y-1", "2"),
    ),
    Question("By how much must 3 change to become 10?", "+7", ("7", "+7"), ("-7", "10", r"\pm 7")),
    Question("What is 3 less 10?", "\N{MINUS SIGN}7", ("-7", "\N{MINUS SIGN}7", "\N{EN DASH}7"), ("7", "+7")),
    Question(
        "Double the second coordinate: give the matrix.",
        r"\begin{pmatrix} 1 & 0 \\ 0 & 2 \end{pmatrix}",
        (r"\begin{pmatrix}1&0\\0&2\end{pmatrix}", r"\begin{bmatrix} 1 & 0 \\ 0 & 2 \end{bmatrix}"),
        (r"\begin{pmatrix} 2 & 0 \\ 0 & 1 \end{pmatrix}", r"\begin{pmatrix} 1 & 0 \\ 0 & 3 \end{pmatrix}", "2"),
    ),
    Question("What are the last three digits of 1007?", "007", ("7", "007"), ("70", "700", "0")),
    Question("What is half of one?", ".5", ("0.5", r"\frac12", ".5", "1/2", "5/10"), ("5", "50", "0.05")),
    Question("Add 1 and 2i and 2.", "3 + 2i", ("2i+3", "3+2i", "3 + 2 i"), ("3-2i", "5", "2+3i")),
    Question(
        "What is the chance that a Poisson count of mean 1 is not 0?",
        r"1 - \frac{1}{\mathrm{e}}",
        (r"1 - \frac{1}{\mathrm{e}}", "1-1/e", r"\frac{e-1}{e}", "1-e^{-1}"),
        (r"1+\frac{1}{e}", r"\frac1e", "1"),
    ),
    Question("Write five in base two.", "101_2", ("101_2", "101_{2}"), ("110_2", "101_3")),
    Question("Take q from p.", "p - q", ("p-q", "-q+p"), ("q-p", "p+q", "p")),
    Question("What is -2 over 5?", r"-\frac{2}{5}", ("-2/5", "-0.4", r"\frac{2}{-5}", r"-\frac25"), ("2/5", "-5/2")),
)
