"""Sentences as people say them to each other: templates for the natural teacher, beside those of `sentences.py`."""

from __future__ import annotations

import random
import re
from typing import TYPE_CHECKING

from csm_cli.recipe.sentences import SentenceWriter, held_out_sentences, is_held_out, training_words

if TYPE_CHECKING:
    from collections.abc import Iterator

MAX_CHARS = 150
_SLOT = re.compile(r"\{(\w+)\}")
_KINDS = {"spoken": 0.42, "plain": 0.28, "short": 0.16, "exchange": 0.14}
"""How often a text is of each kind."""

_SLOTS = {
    "who": """my brother|my sister|our neighbor|the teacher|a friend of mine|the doctor|her uncle|his cousin
the baker|the driver|your mother|the captain|our boss|the mayor|a stranger|the twins|everyone|nobody|somebody
the whole family""",
    "name": """Anna|Ben|Clara|David|Emma|Frank|Grace|Henry|Iris|Jack|Kate|Leo|Mia|Noah|Olivia|Paul|Rose|Sam|Tom
Zoe|Maria|Peter|Julia|Victor""",
    "place": """the kitchen|the garden|the station|the harbor|the library|the market|the old mill|the museum
the airport|the river|the beach|the office|the school|the bridge|the church|the theater|the village
the mountains|the forest|the hotel""",
    "thing": """the blue umbrella|a cup of coffee|the last ticket|a bag of oranges|the wrong key
an old photograph|the evening paper|a new bicycle|the green suitcase|a warm coat|the broken clock
a loaf of bread|the other shoe|a jar of honey|your phone|the map|a birthday present|the yellow folder
a pair of glasses|the guitar""",
    "adj": """quiet|strange|lovely|terrible|expensive|simple|dangerous|funny|useful|heavy|empty|crowded
beautiful|boring|difficult|perfect|awful|enormous|tiny|familiar""",
    "day": """Monday|Tuesday|Wednesday|Thursday|Friday|Saturday|Sunday|yesterday|last night|this morning
tomorrow|next week|in the spring|on Christmas Eve|at noon|after lunch|before sunrise""",
    "verb": """forgot|found|lost|bought|borrowed|dropped|noticed|carried|hid|cleaned|painted|repaired|sold|stole
opened|closed|wrapped|counted|remembered|described""",
    "act": """to call you back|to lock the door|to feed the cat|to water the plants|to take the train
to turn off the lights|to bring some wine|to pay the bill|to write it down|to ask for help|to wait outside
to sing along|to cook dinner|to read the letter|to fix the roof|to leave early|to tell the truth|to keep quiet
to learn the song|to walk home""",
    "emo": """Really?|No way.|Oh, come on!|Wow.|Hmm.|Well, well.|Good heavens!|Of course.|Never mind.|Exactly.
Not again.|That's great!|I see.|Fair enough.|Oh dear.|Absolutely.|Maybe.|Who knows?|Thank goodness.
Sorry about that.""",
    "num": """two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|fifteen|twenty|thirty|forty|sixty
ninety|a hundred|three hundred|a thousand""",
    "food": """soup|pasta|cheese|chicken|salad|chocolate cake|apple pie|fried eggs|pancakes|fish|rice
strawberries|roast beef|noodles|ice cream|garlic bread""",
    "weather": """rain|snow|sunshine|fog|wind|thunder|heat|frost""",
}

_SPOKEN = """I thought {who} was going {act}.|Did you hear what happened in {place} {day}?
{emo} I can't believe {who} {verb} {thing}.|Why would anyone want {act} {day}?
Could you hand me {thing}, please?|It was the most {adj} thing I had ever seen in {place}.
{name} {verb} {thing} and didn't tell anyone.|We need {num} more chairs for {place}.
There were {num} people waiting near {place}.|How long does it take {act}?|I'd rather have {food} than {food}.
If there is {weather} tomorrow, we stay inside.|Please don't forget {act}.|{name}, where did you put {thing}?
{emo} That sounds {adj}.|The {weather} was so {adj} that we turned around.|You should have asked {who} first.
Nothing in {place} costs less than {num} dollars.|She smiled, picked up {thing}, and walked toward {place}.
He said it was {adj}, but I think it was {adj}.|What time is it? I promised {act}.
Let's meet at {place} around {num}.|{name} and {name} have known each other for {num} years.
Is that {thing}, or am I dreaming?|Nobody told me that {who} would be here.
I have been thinking about {place} all day.|Hurry up, or we will miss it!|This {food} tastes {adj}, doesn't it?
Do you remember the {adj} summer we spent near {place}?|I'm sorry, I didn't mean {act}.
First we go to {place}, then we buy {food}.|Whoever {verb} {thing} should bring it back.
That makes {num} in a row.|You look tired. Did you sleep at all?|Tell {name} that the {food} is ready.
Every {adj} story begins in {place}.|Would you mind if I opened the window?
They moved to {place} {num} years ago.|I know, I know. You were right about {name}.
Look at the {weather} over {place}!|Sometimes {who} forgets {act}.
The meeting starts in {num} minutes, and {name} isn't here.|My favorite part was when {name} {verb} {thing}.
Can we talk about something less {adj}?|It's only {num} steps from {place} to {place}.
Wait, is {who} still in {place}?|Honestly, I never liked {food}.|Between you and me, {name} {verb} it {day}.
We laughed until {who} told us {act}.|If you ask me, {place} is too {adj} for {num} people.
Good morning, {name}. How was your trip?|Thanks for calling. I'll get back to you {day}.|That was close!
What a {adj} idea.|Yes, but who is going to pay for {thing}?|I hope the {weather} stops before {num} o'clock.
Once upon a time, {who} lived near {place}.|Turn left at {place}, then go straight for {num} blocks.|{emo}
{emo} {emo}|Good night, {name}.|Listen carefully, because I will say this only once.
The judge asked {who} to speak louder.|Without {thing}, we wandered through {place}.
Her voice sounded {adj} on the telephone.|Everyone agreed that the {food} needed more salt."""

_EXCHANGE = """{emo} {spoken}|{spoken} {emo}|{spoken} {spoken}|{name}? {spoken}|{spoken} Do you agree?
Well, {spoken_low}|So, {spoken_low}|Yes, and {spoken_low}|No, {spoken_low}|Are you sure? {spoken}|Why? {spoken}
Listen, {name}. {spoken}|{spoken} Isn't that {adj}?|Is it really {adj}?|Were you in {place} {day}?
Did {name} bring {thing}?|Can {who} come {day}?|Are there {num} of them, or {num}?|Do you want {food} or {food}?
Who {verb} {thing}?|Was it {name} or {name}?|{food}, {food}, and {food}.|{num}, {num}, {num}.|{name}!
{name}, {name}, and {name}.|What?|Who?|{day}?|{place}.|{adj}!|{thing}?|Yes.|No.|Oh, {name}!|Not {day}.
In {place}?|{num} dollars?"""


class DialogueWriter:
    """Writes what people say to each other; the same seed gives the same sentences."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._slots = {name: _items(block) for name, block in _SLOTS.items()}
        self._spoken, self._exchange = _items(_SPOKEN), _items(_EXCHANGE)

    def sentence(self) -> str:
        """One sentence."""
        return self._capitalized(self._fill(self._random.choice(self._spoken)))

    def exchange(self) -> str:
        """A question, an answer, an exclamation, or two sentences of one turn."""
        return self._capitalized(self._fill(self._random.choice(self._exchange)))

    def _fill(self, template: str) -> str:
        return _SLOT.sub(self._slot, template)

    def _slot(self, match: re.Match[str]) -> str:
        if match[1] == "spoken":
            return self.sentence()
        if match[1] == "spoken_low":
            text = self._fill(self._random.choice([each for each in self._spoken if each.startswith(("It ", "We "))]))
            return text[0].lower() + text[1:]
        return self._random.choice(self._slots[match[1]])

    def _capitalized(self, text: str) -> str:
        return text[0].upper() + text[1:]


def teacher_texts(seed: int) -> Iterator[str]:
    """Endless texts of at most 150 characters for a teacher: no held-out sentence, no held-out word."""
    plain, spoken, choice = SentenceWriter(seed, training_words()), DialogueWriter(seed), random.Random(seed + 1)
    write = {"spoken": spoken.sentence, "plain": plain.sentence, "short": plain.short, "exchange": spoken.exchange}
    held_out = set(held_out_sentences())
    while True:
        (kind,) = choice.choices(list(_KINDS), list(_KINDS.values()))
        text = write[kind]()
        words = re.findall(r"[A-Za-z]+", text)
        if len(text) <= MAX_CHARS and text not in held_out and not any(is_held_out(word) for word in words):
            yield text


def _items(block: str) -> list[str]:
    return block.replace("\n", "|").split("|")
