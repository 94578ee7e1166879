"""Texts that refuse instead of answering, told by how they open.

A refusal speaks of the speaker ("I can't help with that", "As an AI, I don't have opinions") or of
the request ("This request goes against our policy"), in its first sentences. A text that quotes or
reports a refusal does not open like one. Measured in docs/quality.md. Knows words only: English,
and the common openings of eight other languages; what a provider marks is the caller's business.
"""

from __future__ import annotations

import re
from typing import Final

LONG_CHARS: Final = 2000
OPENING_CHARS: Final = 320

_CANNOT: Final = (
    r"(?:can(?:no|')t|can not|could not|couldn't|am not able to|'m not able to|am unable to|"
    r"'m unable to|won't be able to|will not be able to|won't|will not|would not|wouldn't|"
    r"must not|am not (?:allowed|permitted|authori[sz]ed|programmed|designed|supposed) to|"
    r"'m not (?:allowed|permitted|authori[sz]ed|programmed|designed|supposed) to|"
    r"do not feel comfortable|don't feel comfortable|am not comfortable|'m not comfortable|"
    r"cannot in good conscience|refuse to|(?:must|have to|will have to|'ll have to|need to|"
    r"would have to|respectfully) (?:respectfully )?(?:decline|refuse)|'d rather not|"
    r"would rather not|prefer not to|can neither)"
)
_ACTS: Final = (
    r"(?:assist|help|helping|comply|answer|answering|fulfil+|provid(?:e|ing)|giv(?:e|ing)|"
    r"generat(?:e|ing)|creat(?:e|ing)|writ(?:e|ing)|produc(?:e|ing)|discuss(?:ing)?|"
    r"engag(?:e|ing)|do (?:that|this|so)|process|classify|summari[sz]e|extract|translate|respond|"
    r"shar(?:e|ing)|suggest|recommend|encourage|endorse|promote|support|offer|continue|accept|"
    r"participate|satisfy|condone|facilitate|advise|explain|tell you|complete (?:this|that|your)|"
    r"agree (?:to|with)|advocate|decline|refuse|access)"
)
_SORRY: Final = (
    r"(?:(?:i(?:'| a)m (?:very |so |really |truly |deeply |terribly )?sorry|sorry|my apologies|"
    r"apologies|i (?:do |sincerely )?apologi[sz]e(?: for (?:any|the) \w+)?|"
    r"unfortunately|regrettably|no|hello|hi|thank you for [\w ]{1,40}|i understand [^.!?]{1,120}?|"
    r"i appreciate [^.!?]{1,120}?|i(?:'m| am) afraid(?: that)?|i regret to [\w ]{1,20}? that)"
    r"[,.!;:]*\s*(?:but|however,?|and)?\s*)"
)
_AI: Final = (
    r"(?:as an? (?:\w+ ){0,3}?(?:ai|artificial intelligence|language model|chatbot|assistant)\b"
    r"[^.!?]{0,80}?,\s*|i(?:'| a)m (?:just |only )?an? (?:\w+ ){0,3}?"
    r"(?:ai|artificial intelligence|language model|chatbot|assistant)\b[^.!?]{0,80}?"
    r"(?:,|;| and| so)\s*(?:and |so |but )?)"
)
_LACK: Final = (
    r"(?:i (?:do not|don't) (?:have|possess) (?:\w+ ){0,3}?(?:ability|access|permission|capability|"
    r"capabilities|opinions?|feelings?|emotions?|beliefs?|preferences?|information|data|the text)|"
    r"i (?:do not|don't) (?:believe|think) (?:that )?it(?:'s| is| would be) (?:appropriate|ethical|"
    r"right|respectful|okay|fair|proper|accurate|productive|helpful))"
)
_IMPROPER: Final = (
    r"(?:it(?:'s| is| would be| wouldn't be) (?:not|never|against|outside|beyond|inappropriate|"
    r"unethical|illegal|in(?:sensitive|accurate)|\w+ not)\s?(?:\w+ ){0,3}?(?:appropriate|ethical|"
    r"acceptable|okay|possible|safe|within|my|for me|respectful|to)[^.!?]{0,60}?\b"
    rf"(?:{_ACTS}|ask|programming|guidelines|policy|policies)\b)"
)
_REQUEST: Final = (
    r"(?:(?:this|that|your|the) (?:\w+ )?(?:request|question|prompt|content|topic|query|text|input)"
    r"[^.!?]{0,40}? (?:violates|goes against|is against|cannot be (?:answered|fulfil+ed|"
    r"processed|completed)|can't be (?:answered|fulfil+ed|processed|completed)|breaches|"
    r"is not (?:something|appropriate|one) |isn't (?:something|appropriate|one) )|"
    r"(?:that|this)(?:'s| is) (?:not |n't )?(?:something|a (?:request|question|topic)) "
    r"(?:that )?i(?:'m| am)? (?:can't|cannot|can|won't|not able|unable)|"
    r"request (?:denied|refused|rejected|blocked)|"
    r"(?:this )?content (?:was |has been )?(?:blocked|filtered|removed|flagged)|"
    r"(?:must|have to|need to) (?:respectfully )?(?:decline|refuse))"
)
_OTHER: Final = (
    r"(?:lo siento,? (?:pero )?no (?:puedo|me es posible)|"
    r"no puedo (?:ayudar|proporcionar|responder)|"
    r"(?:je suis )?désolée?,? (?:mais )?je (?:ne|n')\s?(?:peux|suis|pourrai)|"
    r"je (?:ne|n')\s?(?:peux|suis) pas (?:en mesure|aider|répondre|fournir|vous)|"
    r"(?:es )?tut mir (?:sehr )?leid,? (?:aber )?(?:ich|das|diese|dabei)|"
    r"ich kann (?:ihnen |dir )?(?:dabei |hierbei |leider )*(?:nicht|keine)|"
    r"mi dispiace,? (?:ma )?non (?:posso|sono in grado)|"
    r"(?:desculpe|sinto muito|lamento),? (?:mas )?(?:eu )?não (?:posso|consigo)|"
    r"het spijt me,? (?:maar )?(?:ik|daar|dat) |"
    r"извините,? (?:но )?я не (?:могу|смогу)|к сожалению,? я не (?:могу|смогу)|"
    r"(?:很?抱歉|对不起)[,，]?\s*(?:但)?我?(?:无法|不能|没有办法)|"
    r"申し訳(?:ありません|ございません|ない)[^。]{0,20}(?:できません|できない|お答え|お手伝い))"
)
_I_CANNOT: Final = rf"(?:i(?: \w+ly| simply| just)?\s?{_CANNOT}\s+(?:\w+ ){{0,3}}?{_ACTS}\b)"
_DECLINE: Final = (
    r"(?:i(?: must| have to| will have to|'ll have to| need to| would have to)?"
    r"(?: respectfully| politely)? (?:decline|refuse)\b)"
)
_BODY: Final = rf"(?:{_I_CANNOT}|{_DECLINE}|{_LACK}|{_IMPROPER}|{_REQUEST}|{_OTHER})"
_REFUSAL: Final = re.compile(
    rf"^{_SORRY}{{0,3}}(?:{_AI})?(?:i (?:must|have to|should|need to) "
    rf"(?:clarify|inform you|emphasi[sz]e|point out|note|respectfully)[^.!?]{{0,20}}? )?"
    rf"(?:that )?{_BODY}",
    re.IGNORECASE,
)
# What a text that answers after all says soon after such an opening.
_TURN: Final = re.compile(
    r"\b(?:(?:but|however,?|instead,?|though,?) (?:i|we) (?:can|could|will|would be happy to)\b"
    r"(?!'|’| (?:not|only|neither))|here(?:'s| is) (?:a|an|the|my|your|what)\b|"
    r"(?:summary|answer|translation|result): )",
    re.IGNORECASE,
)


def opens_as_refusal(text: str) -> bool:
    """Whether a text opens like a refusal and does not soon turn to answer.

    Beyond `LONG_CHARS` characters a text has answered, however it opens.
    """
    plain = text.strip().lstrip("*_#> ").replace("’", "'").replace("‘", "'")
    if len(plain) > LONG_CHARS:
        return False
    opening = plain[:OPENING_CHARS]
    return _REFUSAL.match(opening) is not None and _TURN.search(opening) is None
