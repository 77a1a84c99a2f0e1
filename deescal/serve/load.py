"""The load generator: how fast an endpoint answers real conversations, at several numbers of clients.

Closed loop: each of n clients sends its next request when its last has been answered, so n requests are under way at
any time but the last moments of a level. A request's time counts from its first attempt, retries and waits included.
No two requests of a run are the same prompt while the data has others, so that a server's prefix cache helps as much
as it does in use; what it did is reported.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from itertools import islice
from typing import Any, NamedTuple

from pydantic import Field
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from deescal.config import Config
from deescal.dataset.chat import Message, system_prompt
from deescal.errors import UserError
from deescal.schema import Row
from deescal.serve.answers import Answer, EndpointError
from deescal.serve.client import KEY_ENV, Endpoint, bounded, check_endpoint
from deescal.serve.load_report import REQUESTS, LoadResult, level_row, write_load

TIME_LIMIT = "time limit"  # kind of error of what was under way when the time was over


class LoadConfig(Config):
    """How much load, and what a client does when it is turned away."""

    concurrency: tuple[int, ...] = (1, 4, 16)  # clients at once, a level each
    requests: int = Field(default=64, ge=1)  # of a level
    max_tokens: int = Field(default=64, ge=1)  # of a reply
    stream: bool = True  # without it there is no time to first token
    time_limit_s: float = Field(default=1800.0, gt=0)  # of the whole run; what is left then is counted as not sent
    timeout_s: float = Field(default=120.0, gt=0)  # of an attempt
    retries: int = Field(default=4, ge=0)
    backoff_s: float = Field(default=0.5, ge=0)
    key_env: str = KEY_ENV
    seed: int = 0  # of the choice of prompts, and of the waits before retries


class Prompt(NamedTuple):
    """A conversation up to where the civilian is to speak."""

    name: str  # <conversation>:<number of the message that follows>
    messages: list[Message]


def run_load(
    url: str, model: str, config: LoadConfig, out: str, data: str | None = None, console: Console | None = None
) -> LoadResult:
    """Put load on an endpoint, level by level, each after a warm-up that is not counted (one request a client).

    Writes `<out>/requests.parquet` (REQUESTS), load.json (model, config, versions, LOAD rows), load.png and load.html.

    Args:
        data: a folder of `deescal dataset build`, whose test examples are used; None: made-up encounters.
        console: of the progress line.

    Raises:
        UserError: a config that asks for no load, no such dataset, or an endpoint or model that is not there.
    """
    if not config.concurrency or min(config.concurrency) < 1:
        raise UserError(f"concurrency {','.join(map(str, config.concurrency))}: expected numbers of 1 or more")
    conversations = read_conversations(data) if data else encounters()
    check_endpoint(url, model, config.key_env)
    endpoint = Endpoint(url, config.key_env, config.timeout_s, config.retries, config.backoff_s, config.seed)
    started_at = datetime.now(UTC).isoformat(timespec="seconds")
    levels, requests = asyncio.run(_all_levels(endpoint, model, config, deal(conversations, config.seed), console))
    result = LoadResult(
        out=out,
        url=endpoint.url,
        model=model,
        data=data,
        config=config.model_dump(mode="json"),
        started_at=started_at,
        levels=levels,
        requests=requests,
    )
    write_load(result, out)
    return result


async def _all_levels(
    endpoint: Endpoint, model: str, config: LoadConfig, prompts: Iterator[Prompt], console: Console | None
) -> tuple[list[Row], list[Row]]:
    """-> LOAD rows, REQUESTS rows."""
    levels: list[Row] = []
    requests: list[Row] = []
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    async with endpoint:
        deadline = asyncio.get_running_loop().time() + config.time_limit_s
        with Progress(*columns, console=console or Console(stderr=True), transient=True) as progress:
            for n in config.concurrency:
                warm_up, measured = list(islice(prompts, n)), list(islice(prompts, config.requests))
                bar = progress.add_task(f"{n} at once, warming up", total=len(measured))
                await run_level(endpoint, model, config, warm_up, n, deadline)
                progress.update(bar, description=f"{n} at once")
                advance = partial(progress.advance, bar)
                rows, wall_s = await run_level(endpoint, model, config, measured, n, deadline, advance)
                levels.append(level_row(n, rows, len(measured), wall_s))
                if not progress.console.is_terminal:  # a log has no bar
                    progress.console.print(f"{n} at once: {len(rows)} requests in {wall_s:.0f} s")
                requests += rows
    return levels, requests


async def run_level(
    endpoint: Endpoint,
    model: str,
    config: LoadConfig,
    prompts: Sequence[Prompt],
    concurrency: int,
    deadline: float,
    on_done: Callable[[], None] = lambda: None,
) -> tuple[list[Row], float]:
    """Send these prompts, so many at once -> REQUESTS rows of those that were sent, seconds until the last was over.

    Args:
        deadline: on the event loop's clock; what is under way then is an error of kind "time limit".
    """
    rows: list[Row] = []
    start = time.perf_counter()

    async def job(i: int) -> None:
        row = dict.fromkeys(REQUESTS.names) | {
            **{"concurrency": concurrency, "request": i, "prompt": prompts[i].name, "attempts": 1},
            "started_s": time.perf_counter() - start,
        }
        rows.append(row)
        try:
            fields = {"model": model, "messages": prompts[i].messages, "max_tokens": config.max_tokens}
            row |= await measure(endpoint, {**fields, "temperature": 0.0}, config.stream)
        except asyncio.CancelledError:
            row |= {"error": TIME_LIMIT, "message": f"not answered within the run's {config.time_limit_s:g} s"}
            raise
        finally:
            row["ended_s"] = time.perf_counter() - start
        on_done()

    if asyncio.get_running_loop().time() < deadline:
        with suppress(TimeoutError):  # the rows tell
            async with asyncio.timeout_at(deadline):
                await bounded(len(prompts), concurrency, job)
    return sorted(rows, key=lambda row: row["request"]), max((row["ended_s"] for row in rows), default=0.0)


async def measure(endpoint: Endpoint, fields: dict[str, Any], stream: bool) -> Row:
    """Ask once -> what REQUESTS has of the answer, or of the error."""
    pieces: list[float] = []
    try:
        answer: Answer | None
        if stream:
            told = endpoint.stream(fields)
            pieces = [seconds async for seconds, _ in told]
            answer = told.answer
        else:
            answer = await endpoint.chat(fields)
    except EndpointError as error:
        return {"error": error.kind, "message": str(error), "attempts": error.attempts}
    assert answer is not None  # the stream has ended
    return {
        "pieces_s": pieces if stream else None,
        "latency_s": answer.latency_s,
        "n_prompt_tokens": answer.n_prompt_tokens,
        "n_cached_tokens": answer.n_cached_tokens,
        "n_output_tokens": answer.n_completion_tokens,
        "finish_reason": answer.finish_reason,
        "attempts": answer.attempts,
    }


def read_conversations(data: str) -> dict[str, list[Message]]:
    """Test examples of a dataset, by example_id. Raises: UserError: there are none."""
    from deescal.train.data import check_dataset, read_examples

    check_dataset(data, ["test"])
    return {row["example_id"]: row["messages"] for row in read_examples(data, "test").to_pylist()}


def deal(conversations: dict[str, list[Message]], seed: int) -> Iterator[Prompt]:
    """Prompts without end: every place at which a civilian replies, shuffled, and shuffled again when all were dealt.

    Raises:
        UserError: in no conversation does a civilian reply to an officer.
    """
    cuts = [
        (name, i)
        for name, messages in sorted(conversations.items())
        for i, message in enumerate(messages)
        if message["role"] == "assistant" and i and messages[i - 1]["role"] == "user"
    ]
    if not cuts:
        raise UserError("no prompts: in no test example does a civilian reply to an officer")
    return _shuffled(conversations, cuts, random.Random(seed))


def _shuffled(
    conversations: dict[str, list[Message]], cuts: list[tuple[str, int]], rng: random.Random
) -> Iterator[Prompt]:
    while True:
        rng.shuffle(cuts)
        for name, i in cuts:
            yield Prompt(f"{name}:{i}", conversations[name][:i])


def encounters() -> dict[str, list[Message]]:
    """The made-up encounters, by name: a system message, then officer and civilian in turns."""
    found = {}
    for text in _ENCOUNTERS:
        (name, situation), (character,), *lines = (line.strip().split("|") for line in text.splitlines())
        turns = [turn for line in lines for turn in zip(("user", "assistant"), line, strict=True)]
        system = {"role": "system", "content": system_prompt(situation, character) or ""}
        found[name] = [system, *({"role": side, "content": said} for side, said in turns)]
    return found


# name|situation, the civilian's character, then what the officer says|what the civilian replies. All made up.
_ENCOUNTERS = (
    """tail-light|A driver is stopped at night for a broken tail light.
    You drive home from a double shift and are tired.
    Evening. Do you know why I stopped you?|No idea. I was just driving home.
    Your left tail light is out. When did you last check it?|It was fine on Sunday. I can't see it from in here, can I?
    Fair enough. Licence and registration, please.|They're in the glove box. I'm going to reach over now, okay?
    Go ahead, slowly. Any reason you'd be nervous?|I've been up since four. I just want to get home to my bed.
    I'll make this a warning if you fix it this week.|Really? Okay. I'll have it done tomorrow, I promise.""",
    """noise|Neighbours called about loud music at two in the morning.
    You host your birthday party and have been drinking.
    Hi there. Are you the one who lives here?|Depends who's asking. It's my birthday, man.
    Happy birthday. Your neighbours can't sleep, though.|It's one night. They have the dog barking all year long.
    I hear you. I still need the music down.|So now I get punished because she can't buy earplugs?
    Nobody is punished yet. Let's keep it that way.|Fine. I'll turn it down. But I'm not sending people home.
    Windows shut and the bass off, and we're good.|Bass off. All right. You hear that, Danny? Bass off!""",
    """shop|A shop's guard says that someone left without paying.
    You forgot a bottle of shampoo in the pram. You are embarrassed.
    Ma'am, can I talk to you for a second?|I've already told him it was a mistake. It was in the pram.
    Okay. Tell me what happened, from the start.|My son was screaming, I put it there to have a hand free.
    And you walked past the tills with it.|I paid for forty dollars of groceries! Why would I steal shampoo?
    Have you got the receipt?|It's somewhere in here. Please, people are staring at us.
    We can step to the side. Take your time.|Thank you. Here. You see? I just want to pay for it and go.""",
    """bridge|A man stands outside the railing of a bridge.
    You lost your job and your flat this month. You trust no one.
    Hey. My name is Sam. I'd like to talk with you.|Don't come any closer. I mean it.
    I'm staying right here. What's your name?|Doesn't matter. You'll only write it on some form.
    No forms. I'd just like to know what to call you.|Ray. There. Happy now?
    Thanks, Ray. What happened today?|The landlord changed the locks. All my things are in there.
    That's a hard day. Is there someone I could call?|My sister. But she won't pick up. Nobody picks up.
    Would you let me try her?|You can try. I'm not moving, though. Not yet.""",
    """park|A man sleeps on a bench in a park that closes at ten.
    You have no home and have slept here for a week.
    Sir, wake up please. The park's closed.|I'm not bothering anybody. Leave me be.
    You can't stay here overnight.|And where should I go? The shelter's full. I asked.
    Which one did you ask?|The one on Mill Street. They said come back on Monday.
    There's another by the station. I can call ahead.|They take your bag off you in there. I won't give up my bag.
    I'll ask if you can keep it with you.|You'd do that? All right. But I walk. I don't get in your car.""",
    """custody|Parents argue about who has the children this weekend.
    You are the father. You drove three hours to see them.
    Sir, step over here with me, please.|I've got a paper from the court. Read it. It says Friday.
    I'll read it. First I want to hear you out.|She does this every time. Every single time.
    Does what?|Says they're ill. They're at the window, they're waving at me!
    I see them. Let's keep our voices low for them.|You're right. Okay. I'm calm. What happens now?
    My partner is asking her the same.|And if she says no? Do I drive back another three hours?""",
    """bicycle|A young man pushes a bicycle with a cut lock.
    The bicycle is yours and you lost its key. You feel profiled.
    Hold up. Is that your bike?|Yeah, it's mine. Why, does it look too good for me?
    The lock's been cut. That's why I ask.|I cut it myself. I lost the key. Took me an hour.
    Can you show me that it's yours?|I've got pictures on my phone from like two years ago.
    Pictures would help.|See? That's me. Do you stop everybody who pushes a bike?
    I stop people with cut locks. That is you in the picture.|So can I go? My break's over in five minutes.""",
    """welfare|A daughter asked for a check on her mother, who did not answer the phone.
    You are 81, hard of hearing and proud.
    Mrs Novak? Police. Your daughter is worried.|Who? Speak up, young man.
    Your daughter, Helen. She tried to call you.|That telephone again. I put it in the drawer, it rings all day.
    Are you feeling well?|I'm perfectly well. I have soup on. Did she send you? Honestly.
    May I come in for a minute to see that all is fine?|You may wipe your feet first.
    What happened to your arm?|Oh, that. It's nothing. I slipped in the bath on Tuesday.
    Has a doctor seen it?|For a bruise? In my day we put butter on it.""",
    """checkpoint|Drivers are tested for alcohol at a checkpoint.
    You had two beers with your dinner and fear for your licence.
    Good evening. Anything to drink tonight?|Just water. Well, a beer. With food.
    One beer?|Maybe two. Small ones. I'm fine to drive.
    I'd like you to blow into this for me.|Do I have to? What if I say no?
    Then I have to take you in for a blood test.|That's not much of a choice, is it?
    It isn't. Take a deep breath and blow steadily.|Okay. Okay. What does it say? Is it bad?""",
    """protest|A march must keep off a road that ambulances use.
    You organise the march and know your rights.
    Who's in charge here?|Nobody's in charge. I registered it, if that's what you mean.
    Your people are on the ambulance lane.|We have a permit for this street. Both lanes. Look.
    It says the north lane. The south one stays clear.|So you brought thirty officers because of one lane?
    I brought them so that nobody gets hurt.|Then tell them to take the helmets off. They scare people.
    Helmets off if the lane is clear in ten minutes.|Give me a megaphone and it's five.""",
    """student|A student's room was searched after a report of a smell of smoke.
    You smoked. You fear to be expelled.
    Is this your room?|It's my room and Alex's. But Alex isn't here.
    We had a call about a smell of cannabis.|I don't smell anything. Maybe it's the corridor.
    There's an ashtray behind you.|That's... that's for incense. It was here when I moved in.
    I'd rather you told me straight.|If I tell you, do you call the university? I've got exams.
    That depends on how much there is.|One joint. Half of one. That's everything, I swear.""",
    """hospital|A visitor shouts in an emergency room.
    Your brother was stabbed. Nobody tells you how he is.
    Sir, I need you to lower your voice.|Lower my voice? My brother's in there bleeding!
    I understand. What's his name?|Luis. Luis Ortega. They took him an hour ago and nothing. Nothing!
    I'll find out for you. Sit down with me first.|I can't sit. I can't. Every time that door opens...
    Then stand with me over here, out of the way.|Just ask them if he's alive. Please. Just ask them that.
    I'll ask right now. Will you wait here?|I'll wait. I'll be right here. Please hurry.""",
)
