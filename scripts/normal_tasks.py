"""Synthetic talks about tasks, by grammar: explaining, booking, reviewing code, using tools, meeting.

They stand for what large models and people say to each other at work: stock politeness, headings, lists with shared
frames, short answers ("Okay."), quotations, code that is shown again after a change, a command that is tried again with
another result. What the turns are about is new each time: sentences of Python's documentation, functions of its
standard library, slots that change. No talk loops by construction, and none of them was ever said by anybody.
"""

from __future__ import annotations

import ast
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

Turns = list[dict[str, Any]]
T = TypeVar("T")


def phrases(text: str) -> list[str]:
    """What stands between the bars and line ends."""
    return [phrase for line in text.split("\n") for phrase in line.split("|") if phrase]


class Deck(Generic[T]):
    """Deals all cards in random order before any comes again."""

    def __init__(self, draw: random.Random, cards: Sequence[T]) -> None:
        self.draw, self.cards = draw, list(cards)
        self.left: list[T] = []

    def deal(self) -> T:
        if not self.left:
            self.left = self.draw.sample(self.cards, len(self.cards))
        return self.left.pop()


OPENERS = phrases("""
Great question!|Good point.|Sure, happy to help.|Absolutely.|Let me explain.|Of course!|That's a fair question.
Right.|You're on the right track.|Thanks for asking.|Let's look at it step by step.|Yes, exactly.
Not quite, but close.|Good catch!|Happy to go on.|I see what you mean.|It depends.|Let's move on.
Here is the short version.|To summarise:|Well, there is more to it.
""")


CLOSERS = phrases("""
Let me know if that helps!|Does that make sense?|Shall I go on?|What would you like to look at next?
Hope this helps!|Feel free to ask more.|Would you like an example?|Is there anything else that is unclear?
Tell me if I should slow down.|Would it help to see the next part?|I can go deeper into this if you wish.
That is the main idea.
""")


REPLIES = phrases("""
Okay.|Okay, thanks.|Thanks, that helps.|I see.|Got it, go on.|Yes please.|Hm, not sure I follow.|Interesting!
Makes sense.|And then?|Could you say more?|Okay, next one please.|Sounds good.|Great, thank you!|Why is that?
Wait, really?|Perfect.|All right.|Is that always so?|Fine. What else should I know?
I had to read that twice, but now it is clear.|Thank you, that was what I was looking for.
I thought it was the other way round.|Okay. My colleague told me something else last week.
Can you give me the reason in one line?
""")


HEADINGS = (
    "### Overview",
    "**Key points**",
    "## Details",
    "**In short**",
    "### What to know",
    "**Notes**",
    "### Caveats",
)


def explanations(draw: random.Random, documents: Sequence[Any], turns: int) -> Turns:
    """An assistant goes through a document with a person who answers briefly, asks, or quotes."""
    openers, closers, replies = Deck(draw, OPENERS), Deck(draw, CLOSERS), Deck(draw, REPLIES)
    told_of = draw.sample(list(documents), min(25, len(documents)))
    every = (s.strip().rstrip(".") for d in told_of for p in d.paragraphs for s in p.split(". "))
    sentences = list(dict.fromkeys(s for s in every if len(s.split()) > 6))
    talk: Turns = []
    told = ""
    while len(talk) < turns:
        if len(talk) % 2:
            quoted = f'You said "{" ".join(told.split()[:8])} ...". {replies.deal()}'
            talk.append({"speaker": "person", "text": quoted if draw.random() < 0.15 else replies.deal()})
            continue
        part = [f"{sentences.pop(0)}." for _ in range(min(draw.randint(1, 4), len(sentences)))] or ["That was all."]
        told = part[0]
        body = "\n".join(f"- {line}" for line in part) if len(part) > 2 else " ".join(part)
        head = f"{draw.choice(HEADINGS)}\n" if len(part) > 2 else ""
        opener = openers.deal() + " " if draw.random() < 0.6 else ""
        closer = "\n" + closers.deal() if draw.random() < 0.5 else ""
        talk.append({"speaker": "assistant", "text": f"{opener}{head}{body}{closer}"})
    return talk


SERVICES = {
    "table": (
        "For how many people?",
        "Inside or on the terrace?",
        "Is there any allergy that the kitchen should know of?",
    ),
    "train ticket": (
        "From where to where?",
        "First or second class?",
        "Do you have a discount card?",
        "Window or aisle?",
    ),
    "hotel room": ("How many nights?", "Single or double?", "Would you like breakfast?", "Do you come by car?"),
    "dentist's appointment": ("Is it urgent?", "Have you been here before?", "Which insurance do you have?"),
    "rental car": (
        "Small or large?",
        "Where will you return it?",
        "Who is going to drive?",
        "Do you need a child seat?",
    ),
    "haircut": ("With anybody in particular?", "Wash and cut, or only cut?"),
    "concert ticket": ("Which concert?", "Seat or standing?", "Shall I send it, or will you collect it?"),
    "piano lesson": ("How long have you been playing?", "At home or at the school?", "Half an hour or a whole one?"),
    "repair of the boiler": ("What does it do?", "How old is it?", "Is somebody at home in the morning?"),
    "delivery of wood": ("How many cubic metres?", "Cut to which length?", "Can a lorry reach the house?"),
}
SLOTS = phrases("""
Four. No, five, my aunt comes too.|The terrace, if it is dry.|Nuts.|From Graz to Ulm.|Second.
I do, the small one.|By the window please.|Two nights.|Double.|Without.|By train.|It has hurt since Monday.
Never.|The public one.|As small as you have.|Here again.|My brother and I.|No need.|Whoever has time.|Only cut.
The one on the 14th, with the choir.|Standing.|I collect it.|About three years.|At home is easier.|Half an hour.
It clicks and goes out.|Twelve years or so.|Until nine.|Three.|Thirty centimetres.|Only a small one.|Yes.|No.
I would have to ask.|Whatever is cheaper.|Can I tell you tomorrow?|The later one.|Yes, please.|Not this time.
Yes, since May.|Let me think. The first one.
""")


CONFIRMS = (
    "Okay.",
    "Noted.",
    "Very well.",
    "Perfect, thank you.",
    "All right.",
    "Got it.",
    "One moment, please.",
    "Thank you.",
    "Good.",
)


def bookings(draw: random.Random, turns: int) -> Turns:
    """A clerk asks for what is missing; one booking after another."""
    services, slots, confirms = Deck(draw, list(SERVICES)), Deck(draw, SLOTS), Deck(draw, CONFIRMS)
    days = Deck(
        draw, [f"{day} the {number}th" for day in ("Monday", "Thursday", "Friday", "Sunday") for number in range(4, 20)]
    )
    talk: Turns = []
    while len(talk) < turns:
        service = services.deal()
        ask = draw.choice(
            ("I need a {}.", "Another thing: a {}, please.", "Then I would like a {}.", "And can you get me a {}?")
        )
        talk.append({"speaker": "caller", "text": ask.format(service)})
        for question in (draw.choice(("For which day?", "When shall it be?", "Which date?")), *SERVICES[service]):
            talk.append(
                {"speaker": "clerk", "text": f"{confirms.deal()} {question}" if draw.random() < 0.7 else question}
            )
            when = question.startswith(("For which", "When", "Which date"))
            talk.append({"speaker": "caller", "text": f"{days.deal()}." if when else slots.deal()})
        number = f"{draw.choice('BKMR')}{draw.randrange(1000, 9999)}"
        booked = (
            f"Done. Your {service} is booked, the number is {number}. Anything else?",
            f"{number}, for your {service}. It costs {draw.randrange(8, 190)} euros. Is there something else I can do?",
            f"I am afraid the {service} is only free two hours later. I put it down as {number}. Is that all right?",
        )
        talk.append({"speaker": "clerk", "text": draw.choice(booked)})
    return talk[:turns]


REMARKS = phrases("""
Why not check the argument first?|The name does not say what it does.|Please add a docstring.
Could this raise for an empty input?|This is quadratic, does it matter?|I would return early here.
A test for the last branch would be good.|Nice, I had not thought of that.|Does anybody still call it?
Magic number: give it a name.|Shorter, but harder to read, I think.|Please handle None.
LGTM apart from one comment.|The error message should say what was expected.|Can we cache that?
This line is too long.|Is this safe with threads?|Typo in a comment.
""")


FIXES = (
    "Done:",
    "Changed as you said.",
    "Good idea, now it reads:",
    "Fixed.",
    "You are right. New version:",
    "Here you go:",
)
APPROVALS = (
    "LGTM.",
    "Looks good now.",
    "Approved, thanks!",
    "Okay, merge it.",
    "Great. Next file?",
    "Thanks, fine with me.",
    "Ship it.",
)


def reviews(draw: random.Random, functions: Sequence[str], turns: int) -> Turns:
    """One function after another is shown, remarked upon, shown again with a change, and approved."""
    remarks, fixes, approvals = Deck(draw, REMARKS), Deck(draw, FIXES), Deck(draw, APPROVALS)
    code = Deck(draw, functions)
    talk: Turns = []
    while len(talk) < turns:
        source = code.deal()
        talk.append(
            {
                "speaker": "author",
                "text": f"{draw.choice(('Next one:', 'Please have a look at this.', 'And this?'))}\n{source}",
            }
        )
        remark = remarks.deal()
        talk.append({"speaker": "reviewer", "text": remark})
        if draw.random() < 0.6:
            talk.append({"speaker": "author", "text": f"{fixes.deal()}\n{changed(draw, source, remark)}"})
        else:
            talk.append(
                {
                    "speaker": "author",
                    "text": draw.choice(("Would rather leave it, it is tested elsewhere.", "Fair. I open a ticket.")),
                }
            )
        talk.append({"speaker": "reviewer", "text": approvals.deal()})
    return talk[:turns]


def changed(draw: random.Random, source: str, remark: str) -> str:
    """The part of a function around a change: a line goes, a comment and a check come."""
    lines = source.splitlines()
    at = draw.randrange(1, len(lines))
    indent = " " * (len(lines[at]) - len(lines[at].lstrip()))
    new = [
        f"{indent}# {remark}",
        f"{indent}if not {draw.choice(('value', 'items', 'name', 'args'))}:",
        f"{indent}    return None",
    ]
    return "\n".join([*lines[max(at - 3, 0) : at], *new, *lines[at + 1 : at + 4]])


def operations(draw: random.Random, functions: Sequence[str], names: Sequence[str], turns: int) -> Turns:
    """An agent reads files, searches, runs tests, and tries again after a change; a tool answers with what it found."""
    files, code = Deck(draw, names), Deck(draw, functions)
    talk: Turns = []

    def line(functions: Deck[str]) -> str:
        return draw.choice(functions.deal().splitlines()).strip()

    def act(action: str, result: str) -> None:
        talk.append({"speaker": "agent", "text": action, "kind": "action"})
        talk.append({"speaker": "tool", "text": result, "kind": "result"})

    failing, wrong = draw.randint(3, 9), Deck(draw, REMARKS)
    while len(talk) < turns:
        step, file = draw.randrange(3), files.deal()
        if step == 0:
            act(f'{{"tool": "read_file", "path": "{file}"}}', code.deal())
        elif step == 1:
            word = draw.choice(code.deal().split())
            hits = sorted(f"{files.deal()}:{draw.randrange(1, 900)}: {line(code)}" for _ in range(draw.randint(1, 5)))
            act(f'{{"tool": "grep", "pattern": {word!r}}}', "\n".join(hits))
        else:
            act(f'{{"tool": "edit_file", "path": "{file}"}}\n{changed(draw, code.deal(), file)}', "1 file changed")
            failing = failing - 1 if failing else draw.randint(2, 9)
            said = f"{failing} failed, {draw.randrange(40, 400)} passed in {draw.uniform(1, 90):.2f}s"
            act('{"tool": "run_tests"}', f"{line(code)}\nE   {wrong.deal()}\n{said}")
    return talk[:turns]


WHO = ("Maja", "Tom", "Ines", "Karim")
DID = phrases("""
wrote the draft of|called the supplier about|tested|paid the bill for|translated the leaflet on|repaired
compared two offers for|asked the landlord about|measured|painted|cancelled|collected signatures for
found a cheaper way to do|moved|took photographs of|counted
""")


THINGS = phrases("""
the new fence|the summer party|the lift|the ticket system|the kitchen|the insurance of the van|the roof
the yearly report|the server room|the old archive|the contract with the printers|the bicycle shed|the survey
the lamp in the hall|the guest list|the budget for next year|the training on Friday|the broken window|the logo
the coffee machine|the price list|the emergency exit|the garden hose|the visit of the school
""")


NEXT = phrases("""
Tomorrow I go on with {}.|No blockers.|I need help with {}.|{} has to wait until Tuesday.|After that comes {}.
Can somebody take {}?|I am stuck with {} because nobody answers.|That leaves {}.|Nothing else from me.
Half of {} is done.|I would rather not do {} alone.
""")


def meetings(draw: random.Random, turns: int) -> Turns:
    """Three or four people report in turn, agree, and decide: the same order and manner, other content each round."""
    people = WHO[: draw.choice((3, 4))]
    did, things, after = Deck(draw, DID), Deck(draw, THINGS), Deck(draw, NEXT)
    replies = Deck(draw, REPLIES)
    talk: Turns = []
    while len(talk) < turns:
        for person in people:
            if draw.random() < 0.25:
                talk.append({"speaker": person, "text": replies.deal()})
                continue
            first = f"{draw.choice(('Yesterday I', 'This week I', 'Since we met I', 'I'))} {did.deal()} {things.deal()}"
            second = f" and {did.deal()} {things.deal()}" if draw.random() < 0.5 else ""
            talk.append({"speaker": person, "text": f"{first}{second}. {after.deal().format(things.deal())}"})
    return talk[:turns]


def functions(path: Path) -> list[str]:
    """The functions of 6 to 25 lines in a source file, as they are written; it is parsed, never run."""
    text = path.read_text("utf-8", errors="replace")
    try:
        nodes = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef)]
    except SyntaxError:
        return []
    lines = text.splitlines()
    return [
        "\n".join(lines[node.lineno - 1 : node.end_lineno])
        for node in nodes
        if 6 <= (node.end_lineno or node.lineno) - node.lineno <= 25
    ]


def tasks(
    documents: Sequence[Any], code: Sequence[str], names: Sequence[str]
) -> dict[str, Callable[[random.Random, int], Turns]]:
    """Cluster -> the talk of a seed and so many turns."""
    return {
        "explanations": lambda draw, turns: explanations(draw, documents, turns),
        "bookings": bookings,
        "reviews": lambda draw, turns: reviews(draw, code, turns),
        "operations": lambda draw, turns: operations(draw, code, names, turns),
        "meetings": meetings,
    }
