"""Sequences that other projects' users and tests argue about, each driven through the real conversation loop."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from a2a_ray.agents.function import FunctionAgent
from a2a_ray.agents.replay import ReplayAgent
from a2a_ray.analysis.loops import LoopDetector, scan
from a2a_ray.core.contracts import TurnProtocol
from a2a_ray.core.conversation import Conversation
from a2a_ray.core.errors import A2AError
from a2a_ray.core.message import NUDGE, Message
from a2a_ray.core.transcript import Transcript
from a2a_ray.core.turns import ProtocolMessage, Stop, TurnContext
from a2a_ray.core.verdict import ObserverVerdict

Turn = tuple[str, ...] | tuple[str, str, str, float]
"""Speaker, text, and where they matter: kind, and seconds since the beginning."""


class Script(TurnProtocol):
    """Lets the speakers of a script have their turns; a turn of kind "nudge" is the protocol's own."""

    def __init__(self, script: list[Any]) -> None:
        self.script = script

    def speakers(self, transcript: Transcript) -> Any:
        if len(transcript.turns) == len(self.script):
            return Stop("the script is over")
        speaker, text, *rest = self.script[len(transcript.turns)]
        return ProtocolMessage(speaker, text, NUDGE) if rest[:1] == [NUDGE] else speaker

    def context(self, transcript: Transcript, speaker: str) -> TurnContext:
        return TurnContext(transcript.last.sender, transcript.last.content)


def run(script: list[Any], embedder: str | None = None, **settings: Any) -> Transcript:
    """The transcript of a scripted conversation that a detector observed."""

    def speak(message: Message) -> Message:
        speaker, text, *rest = script[message.seq - 1]
        kind, seconds = (*rest, *("message", 0.0)[len(rest) :])
        return replace(message.reply(text, speaker, kind=kind), created_at=1.8e9 + seconds)

    names = list(dict.fromkeys(s[0] for s in script if NUDGE not in s))
    agents = [FunctionAgent(name, speak, "message") for name in names]
    observer = LoopDetector(embedder, **settings)
    return Conversation(agents, Script(script), "Go.", max_turns=len(script), observers=[observer]).run()


def verdicts(script: list[Any], embedder: str | None = None) -> list[tuple[int, ObserverVerdict]]:
    return [(turn, verdict) for turn, _, verdict in run(script, embedder).verdicts]


def loop(script: list[Any], embedder: str | None = None) -> ObserverVerdict:
    """The last verdict, which must be that of a loop."""
    found = verdicts(script, embedder)
    assert found, "no verdict at all"
    assert found[-1][1].status == "loop", found[-1]
    return found[-1][1]


def quiet(script: list[Any], embedder: str | None = None) -> bool:
    """Whether no turn is called a loop; a warning may be given."""
    return all(verdict.status in ("warning", "waiting") for _, verdict in verdicts(script, embedder))


@pytest.fixture(scope="session")
def semantic() -> str:
    """The name of the default embedder, where its weights are on this machine."""
    try:
        LoopDetector("default")
    except A2AError as error:
        pytest.skip(str(error))
    return "default"


def talk(*texts: str, speakers: str = "ann bob") -> list[Any]:
    names = speakers.split()
    return [(names[i % len(names)], text) for i, text in enumerate(texts)]


def test_1_equal_action_and_equal_result() -> None:
    once = [
        ("agent", '{"tool": "read", "path": "setup.cfg"}', "action"),
        ("tool", "No such file or directory: setup.cfg", "result"),
    ]
    assert quiet(once * 2)
    found = loop(once * 4)
    assert found.evidence["kind"] == "action"
    assert (found.evidence["onset_turn"], found.evidence["first_repeats_turn"], found.evidence["period"]) == (3, 1, 2)
    # OpenHands waits for the fourth; readers of real runs of tools call the third a loop.
    assert [turn for turn, v in verdicts(once * 4) if v.status == "loop"] == [6, 7, 8]


def test_2_two_speakers_each_equal_to_its_own_past() -> None:
    found = loop(talk(*["Please send me the invoice first.", "I can only send it after the payment."] * 4))
    assert found.evidence["period"] == 2
    assert found.evidence["onset_turn"] == 3
    assert found.evidence["first_repeats_turn"] == 1
    assert found.evidence["speakers"] == ["ann", "bob"]


def test_3_three_different_messages_in_a_row() -> None:
    assert quiet(
        talk(
            "I will look at the logs of last night.",
            "The disk of the second server was full at three.",
            "I deleted the old dumps and restarted the queue.",
            speakers="agent",
        )
    )


def test_4_different_commands() -> None:
    assert quiet([("agent", command, "action") for command in ("ls", "pwd", "whoami", "date")])
    assert quiet(talk("ls", "pwd", "whoami", "date", speakers="agent"))


STORY = """The ferry left at dawn with eleven passengers and a crate of oranges on deck.
Nobody had told the captain that the lighthouse would stay dark this week.
Halfway across, fog came down so thick that the bow could not be seen from the bridge.
A boy counted the seconds between the calls of the horn and wrote them on his sleeve.
The cook served soup in mugs, since plates would have slid from the tables.
At noon somebody heard bells, and the engines were stopped to listen.
They came from a buoy that was not on any of the charts.
The captain lowered a lead line and found sand where forty metres should have been.
So they waited for the tide, and an old woman taught the others a card game.
When the water rose, the hull came free with a sound like a long sigh.
By evening the harbour lights showed, two points further north than expected.
The oranges were unloaded first, because the greengrocer had waited since breakfast.""".splitlines()


def test_5_a_loop_that_ended_is_withdrawn() -> None:
    said = [STORY[0], *["We should ask the harbour master about it tomorrow."] * 6, *STORY[1:]]
    found = verdicts(talk(*said))
    statuses = [v.status for _, v in found]
    assert "loop" in statuses
    assert statuses[-1] == "recovered"
    assert found[-1][1].evidence["recovered_turn"] == 8
    assert found[-1][1].evidence["onset_turn"] == 3
    assert found[-1][0] <= 12


@pytest.mark.parametrize(
    ("said", "period"),
    [
        (["Checking the first shelf now.", "It is not on the second shelf.", "Let me ask the librarian."], 3),
        (
            [
                "I open the settings and look for the switch.",
                "The switch is greyed out on my side.",
                "Then I sign out and sign in again.",
                "Signing in takes me back to the start page.",
                "From the start page I go to the settings.",
            ],
            5,
        ),
    ],
)
def test_6_cycles_of_three_and_five(said: list[str], period: int) -> None:
    assert loop(talk(*said * 5, speakers="agent")).evidence["period"] == period
    assert loop(talk(*said * 5)).evidence["period"] == period
    each_five_times = [text for text in said for _ in range(5)]
    assert loop(talk(*each_five_times, speakers="agent")).evidence["period"] == 1


def test_7_interrupted_pairs() -> None:
    a, b, c = "Try the other key.", "It does not fit either.", "There is a window at the back."
    assert quiet(talk(a, b, a, b, c, speakers="agent"))


def test_8_random_strings() -> None:
    draw = random.Random(8)
    strings = ["".join(draw.choices("abcdefghijklmnopqrstuvwxyz0123456789", k=10)) for _ in range(1000)]
    assert quiet(talk(*strings))
    assert quiet(talk(*strings, speakers="agent"))


SENTENCE = "This sentence has exactly fifty characters in it.."


def test_9_one_sentence_ten_times() -> None:
    assert len(SENTENCE) == 50
    assert loop(talk(*[SENTENCE] * 10, speakers="agent")).evidence["onset_turn"] == 2
    draw = random.Random(9)
    noise = ["".join(draw.choices("abcdefghijklmnopqrstuvwxyz ", k=500)) for _ in range(10)]
    between = [text for pair in zip([SENTENCE] * 10, noise, strict=True) for text in pair]
    assert quiet(talk(*between, speakers="agent"))
    assert quiet(talk(*between))
    assert quiet(talk(*(f"{SENTENCE} {n}" for n in noise), speakers="agent"))
    solid = ["".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=500)) for _ in range(10)]
    assert quiet(talk(*(text for pair in zip([SENTENCE] * 10, solid, strict=True) for text in pair)))


FRUITS = ["apples", "pears", "plums", "figs", "dates", "limes", "grapes", "kiwis", "melons", "cherries", "peaches"]
FRUITS += ["olives", "quinces", "berries", "nuts"]


def test_10_one_message_with_a_long_shared_prefix() -> None:
    fruits = FRUITS
    message = "\n".join(f"- The supplier on the northern market offers a box of {fruit}" for fruit in fruits)
    assert quiet(talk(message, speakers="agent"))
    assert quiet(talk("What can we buy?", message, "Take the figs, and ask about transport."))


PASSAGE = (
    "The clerk opened the drawer, counted the stamps, wrote the number on a card, closed the drawer again and waited"
    " until the next visitor rang the bell. "
)


def test_11_running_text_that_repeats_while_its_cut_points_shift() -> None:
    text, draw, turns = PASSAGE * 12, random.Random(11), []
    assert len(PASSAGE) == 150
    while text:
        size = draw.randint(60, 140)
        turns.append(text[:size])
        text = text[size:]
    assert len(set(turns)) == len(turns)
    found = loop(talk(*turns))
    assert found.evidence["kind"] in ("verbatim", "template")
    assert found.evidence["onset_turn"] <= 4


def test_12_thinking() -> None:
    assert loop(talk(*["Thinking... Done. "] * 30, speakers="agent")).evidence["kind"] == "verbatim"
    thought = "I need to check whether the file exists. Let me look at the directory. The file might have moved."
    found = verdicts(talk(*[thought] * 15, speakers="agent"))
    assert next(turn for turn, v in found if v.status == "loop") <= 5


def test_13_empty_messages() -> None:
    assert quiet(talk("Hello there.", "", " ", "How are you?", "\n", "Fine, thanks.", "", ""))
    found = loop(talk("Hello there.", "", " \n", "\t"))
    assert found.evidence["kind"] == "silent"
    assert found.evidence["onset_turn"] == 2
    assert verdicts(talk("Hello there.", "", " ", "\n", "Back again."))[-1][1].status == "recovered"


def test_14_equal_after_canonicalisation() -> None:
    calls = [
        'search({"query": "fjord  ferries", "limit": 5, "request_id": "a81f-22"})',
        'search({"limit": 5, "request_id": "b9907c-1", "query": "fjord ferries"})',
        'SEARCH( {"query":"Fjord ferries","limit":5, "timestamp":"2026-11-21T10:00:00Z"} )',
        'search({"limit": 5, "query": " fjord ferries ", "trace_id": 77})',
    ]
    answers = [
        "2026-11-21T14:05:09Z 0 results (request id: 81-aa)",
        "2026-11-21T14:05:11Z  0 results (request id: 90-cd)",
        "2026-11-21 14:05:15 0 Results (request id: 17)",
        "2026-11-21T14:06:02.120Z 0 results (request id: xyz9)",
    ]
    script = [t for c, a in zip(calls, answers, strict=True) for t in (("agent", c, "action"), ("tool", a, "result"))]
    assert loop(script).evidence["kind"] == "action"
    other = [("agent", c.replace("5", str(i)), "action") for i, c in enumerate(calls)]
    assert quiet([t for pair in zip(other, script[1::2], strict=True) for t in pair])


ROUNDS = [
    (
        "The parser fails on nested quotes; I have a minimal example.",
        "Here the second quote ends the string too early.",
    ),
    ("I changed the rule for escapes and ran the suite.", "Two tests for line continuation broke, see the log."),
    ("Continuations now go through the same state as quotes.", "All tests pass, and the benchmark is 4 % slower."),
    ("Could the table of states be built once?", "Built at import now; the slowdown is gone."),
]


def test_15_healthy_round_robin() -> None:
    plans = ["Let us find out why it fails.", "First the rules.", "Then the states.", "Last, speed."]
    said = [text for plan, (first, second) in zip(plans, ROUNDS, strict=True) for text in (plan, first, second)]
    assert quiet(talk(*said, speakers="a b c"))


def test_16_acknowledgements_for_hours() -> None:
    said = ["Acknowledged, standing by.", "Acknowledged as well, waiting for input.", "Understood, holding position."]
    script = talk(*(said * 133)[:398], speakers="a b c")
    found = verdicts(script)
    first = next(turn for turn, v in found if v.status == "loop")
    assert first <= 3 + 10
    assert found[-1][1].status == "loop"
    assert found[-1][1].evidence["period"] == 3
    assert found[-1][1].evidence["tokens_since_onset"] > 1500


THANKS = [
    "Could you send me the slides of the meeting?",
    "Of course, they are in the shared folder now. The budget is on page twelve.",
    "Perfect, I found them. Thank you so much for the quick help!",
    "You're very welcome! I'm always glad to help.",
    "That is so kind of you. I really appreciate your support.",
    "It was truly my pleasure. Don't hesitate to reach out at any time.",
    "I will, thank you! Your helpfulness means a lot to me.",
    "And your kind words mean a lot to me too. Happy to assist whenever you need it!",
    "I am grateful for that. It is wonderful to work with somebody so considerate.",
    "The feeling is mutual! Working with you is a joy.",
    "You are too kind. Thanks again for everything.",
    "No problem at all! I'm here for you whenever something comes up.",
    "I appreciate it more than I can say. Have a great rest of the day!",
]
FAREWELL = [
    "So you bring the tent, I bring the stove, and we meet on Friday at the north gate.",
    "Yes, Friday at six. I'll also bring the maps and some rope.",
    "Great. Then see you on Friday! Goodbye!",
    "Goodbye! Looking forward to it. Take care until then!",
    "You too, take good care. Bye for now!",
    "Bye! Have a wonderful week, and see you soon!",
    "Thanks, have a great one as well. Until Friday!",
    "All the best, and farewell for now!",
    "Farewell, my friend! See you at the gate!",
    "See you there! Stay safe and goodbye!",
    "Stay safe too! Until we meet again!",
]


@pytest.mark.parametrize("said", [THANKS, FAREWELL], ids=["thanks", "farewell"])
def test_17_thanks_and_goodbyes_in_ever_new_words(said: list[str], semantic: str) -> None:
    for embedder in (None, semantic):
        turn, found = verdicts(talk(*said), embedder)[-1]
        assert (turn, found.evidence["kind"]) == (len(said), "courtesy")
        assert found.evidence["onset_turn"] in (3, 4, 5)
        assert found.evidence["score"] > 0.85  # no turn repeats another's words; the acts alone are empty


def test_18_polling() -> None:
    def polls(*results: str, minutes: float) -> list[Any]:
        return [
            turn
            for i, text in enumerate(results)
            for turn in (
                ("agent", "job_status(17)", "action", i * 60 * minutes),
                ("tool", text, "result", i * 60 * minutes + 1),
            )
        ]

    unchanged = verdicts(polls(*["running"] * 4, minutes=5))
    assert [(turn, v.status) for turn, v in unchanged] == [(4, "waiting"), (6, "waiting"), (8, "waiting")]
    assert verdicts(polls("running, 10 %", "running, 40 %", "running, 80 %", "done", minutes=5)) == []
    assert loop(polls(*["running"] * 4, minutes=0.05)).evidence["kind"] == "action"


def test_19_twenty_actions_of_one_kind() -> None:
    months = ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"]
    renames = [
        turn
        for i in range(20)
        for turn in (
            ("agent", f"rename('scan_{i:03}.tif', '{months[i % 12]}_{i}.tif')", "action"),
            ("tool", f"renamed to {months[i % 12]}_{i}.tif", "result"),
        )
    ]
    assert verdicts(renames) == []
    same_answer = [(s, "ok" if kind == "result" else text, kind) for s, text, kind in renames]
    assert verdicts(same_answer) == []


def test_20_nudges_never_count() -> None:
    nudge = ("moderator", "You are repeating yourselves. Please try something that you have not tried before.", NUDGE)
    said = talk(*STORY)
    script = [turn for one in said for turn in (one, nudge)]
    assert verdicts(script) == []


def test_21_templates() -> None:
    fruits = FRUITS[:12]
    found = loop(talk(*(f"I love {fruit}, they are great at any time of the year." for fruit in fruits)))
    assert found.evidence["kind"] == "template"
    found = loop(talk(*(f"Version {i} of the report is ready, please have a look." for i in range(1, 11))))
    assert found.evidence["kind"] == "template"
    text, chain = "Thank you for the parcel, everything arrived in good order.", []
    for add in (
        "the box was lovely",
        "my cat likes it too",
        "greet your sister",
        "I forgot the stamps",
        "write soon",
        "the weather is fine",
        "the train was late",
        "we ate fish",
    ):
        chain.append(text)
        text += f" P.S. {add}."
    assert loop(talk(*chain)).evidence["onset_turn"] in (2, 3)


def test_22_prose_and_dialogue(shared: Path) -> None:
    lines = (shared / "prose.jsonl").read_text(encoding="utf-8").splitlines()
    alarms = [scan(Transcript.from_exchange(json.loads(line))).loop for line in lines]
    assert sum(alarm is not None for alarm in alarms) <= 2


def test_23_a_resumed_run_whose_history_holds_the_loop() -> None:
    earlier = run(talk(*["Please hold the line.", "I am still holding the line."] * 5))
    again = Conversation(
        [ReplayAgent(name, {11: "And what now?"}) for name in ("ann", "bob")],
        max_turns=11,
        transcript=earlier.until(10),
        observers=[LoopDetector(action="stop")],
    )
    transcript = again.run()
    assert len(transcript.messages) == 10
    assert "the last turn before it is 2" in transcript.reason


@pytest.mark.parametrize("embedder", [None, "default"])
def test_24_streamed_and_scanned(embedder: str | None, request: pytest.FixtureRequest) -> None:
    if embedder:
        request.getfixturevalue("semantic")
    said = talk(*STORY[:4], *["We could ask somebody who has been there before."] * 5, *STORY[4:], *THANKS)
    streamed = run(said, embedder)
    scanned = scan(streamed, embedder)
    spoken = [(turn, v) for turn, v in enumerate(scanned.verdicts, 1) if v.status != "none"]
    assert spoken == [(turn, verdict) for turn, _, verdict in streamed.verdicts]
    assert scanned.loop is not None
