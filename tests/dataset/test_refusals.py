"""Refusals and cut texts: what is found, and what must not be."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stillhouse.dataset.endings import looks_cut
from stillhouse.dataset.refusals import opens_as_refusal

REFUSALS = [
    "I'm sorry, but I can't assist with that.",
    "I’m sorry, but I cannot help with that request.",
    "Sorry, I can't help with that.",
    "I cannot fulfill your request. I'm just an AI, it's not within my guidelines to do so.",
    "I can't provide instructions on how to do that.",
    "I am unable to process this request.",
    "Unfortunately, I am not able to answer this question.",
    "As an AI language model, I do not have personal opinions.",
    "As an AI, I cannot access external websites.",
    "I'm just an AI assistant and I can't help you with legal matters.",
    "I must decline to write this.",
    "I have to respectfully decline.",
    "I won't be able to create that content.",
    "I will not generate a summary of this document.",
    "I'm not comfortable discussing this topic.",
    "I don't feel comfortable writing that.",
    "I would rather not engage with this topic.",
    "I do not have access to the text you mention.",
    "I don't have the ability to browse the internet.",
    "I don't think it's appropriate to comment on this person.",
    "It is not appropriate for me to provide such information.",
    "It's against my programming to answer that.",
    "This request goes against our usage policy.",
    "Your request cannot be processed.",
    "That's not something I can help with.",
    "No, I can't do that.",
    "I understand that you are in a hurry, but I cannot complete this task.",
    "Thank you for your question. However, I am not able to provide medical advice.",
    "I apologize for the inconvenience, but I can't translate this text.",
    "My apologies, but I'm not allowed to share that.",
    "I'm afraid I can't do that.",
    "Request denied.",
    "**I'm sorry**, but I can't summarise this article.".replace("**", ""),
    "Lo siento, pero no puedo ayudar con eso.",
    "Je suis désolé, mais je ne peux pas répondre à cette question.",
    "Es tut mir leid, aber ich kann dabei nicht helfen.",
    "Mi dispiace, ma non posso aiutarti.",
    "Desculpe, mas não posso ajudar com isso.",
    "抱歉，我无法回答这个问题。",
    "申し訳ありませんが、お答えできません。",
    "Извините, но я не могу ответить на этот вопрос.",
    "I cannot provide guidance on that. It is dangerous and illegal. " + "Please stay safe. " * 30,
]
ANSWERS = [
    "The court refused to hear the case, and the lawyers said they cannot appeal.",
    "He said he was sorry but could not help the police with their enquiries.",
    '"I cannot help you," the minister told reporters on Monday.',
    "The airline apologised and said it was unable to process refunds this week.",
    "The letter is a refusal: the bank writes that it cannot provide the loan.",
    "The model refuses the request, as it should.",
    "The review praises the film; the critic cannot recommend it enough.",
    "I can't recommend this film enough.".replace("I can't", "Critics can't"),
    "I'm sorry to hear that your parcel is late. It arrives on Monday.",
    "Sorry about the delay: the bridge opens in May.",
    "I can help: the bridge is late.",
    "I can't believe how late the bridge is, says the mayor.",
    "I will not be in the office on Friday; Anna takes the calls.",
    "I cannot wait to see the new bridge.",
    "Unfortunately, the parcel was lost. We send a new one today.",
    "Unfortunately the bridge is late again, and the town is angry.",
    "No, the shop is closed on Sundays.",
    "No refund is due: the ticket was used.",
    "It is not possible to cross the bridge before May.",
    "It is illegal to park here on market days.",
    "It's not safe to swim after rain.",
    "This content of the parcel was damaged by water.",
    "The request was granted after a week.",
    "Your request has been processed and the refund is on its way.",
    "As an example, AI cannot yet drive the ferry alone, the article says.",
    "As an assistant to the mayor, she wrote most of the plan.",
    "AI language models cannot feel, the professor argues.",
    "I don't have the receipt any more, the customer writes.",
    "I do not like the colour, but the fit is good.",
    "I'm not able to say whether it was love; the novel is open. Here is the plot: two meet.",
    "I don't have personal opinions, but I can tell you that critics liked it.",
    "I cannot open the attachment, but I can say from the text that the bridge is late.",
    "The user asks for help with a refund and cannot log in.",
    "Thank you for your order. It ships on Monday.",
    "Hello! Your table is booked for eight.",
    "I understand that the bridge is late, and so does the council.",
    "Lo siento mucho por el retraso; su pedido llega el lunes.",
    "Je suis désolé pour le retard. Votre colis arrive lundi.",
    "Es tut weh, sagt der Trainer nach dem Spiel.",
    "抱歉让您久等了，包裹周一送到。",
    "billing",
    '{"refused": true, "reason": "I cannot help"}',
]


def test_most_refusals_are_found() -> None:
    missed = [text for text in REFUSALS if not opens_as_refusal(text)]
    assert missed == []


def test_answers_that_talk_of_refusing_are_kept() -> None:
    false = [text for text in ANSWERS if opens_as_refusal(text)]
    assert false == []


def test_a_long_text_has_answered() -> None:
    assert not opens_as_refusal("I cannot help with that. " + "The bridge is late. " * 200)


@given(st.text(max_size=300))
def test_any_text_is_looked_at(text: str) -> None:
    assert opens_as_refusal(text) in (True, False)
    assert looks_cut(text) is None or isinstance(looks_cut(text), str)


@pytest.mark.parametrize(
    "text",
    [
        "The bridge is late,",
        "These are the reasons (",
        "The council met on Monday to talk about the bridge and the",
        "The bridge is late. The mayor said that he would",
        "Run this:\n```python\nprint(1)",
        "The bridge is late –",
        "- The bridge is late and it will not be opened before the end of",
    ],
)
def test_cut_texts(text: str) -> None:
    assert looks_cut(text) is not None


@pytest.mark.parametrize(
    "text",
    [
        "The bridge is late.",
        "Bridge late again",
        "A title without an end",
        "What dreams are made of",
        "- alpha\n- beta\n- gamma",
        "1. First. Do it well\n2. Then rest",
        "It opens on Monday. Best regards,\nAnna",
        "It opens on Monday.\n\nAnna Smith",
        "See https://example.org/bridge. Or https://example.org/late",
        "```python\nprint(1)\n```",
        "He said: “It is late.”",
        "橋の完成は来年になる。",
        "橋は遅れている。来年になる",
        "| a | b |\n|---|---|\n| 1 | 2 |",
        "Late again. :-)",
        "positive",
        '{"a": 1}',
        "",
    ],
)
def test_whole_texts(text: str) -> None:
    assert looks_cut(text) is None


@pytest.mark.parametrize(
    "text",
    [
        "U.S. Senate passes new climate bill",
        "St. Louis mayor resigns after long probe",
        "Talks with Dr. Smith go on in Geneva",
        "Mr. Bean and J. K. Rowling meet again",
        "Court hears Roe vs. Wade case once more",
        "Symphony No. 5 played in full at dawn",
    ],
)
def test_a_headline_with_an_abbreviation_is_whole(text: str) -> None:
    assert looks_cut(text) is None


def test_a_sentence_after_one_with_an_abbreviation_is_still_seen_to_be_cut() -> None:
    assert looks_cut("Dr. Smith came home. He then went to the") is not None
    assert looks_cut("They met in the U.S. today. The talks had been long") is not None
