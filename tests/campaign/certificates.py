"""``python -m campaign.certificates [CASES [SEED]]``: certificates and tokens, wrong, old, or changed.

Two honest nodes, each with the agent's own trust and stream, send to a listener of the collector's own
authority from beginning to end. Beside them the cases come in turn. Whoever is to be refused must be, with a
word that says why, and be in the audit log as `flopwatch trust refused` shows it; whoever was only late, or
denied and admitted again, and everybody while an authority is changed, must lose nothing.

An authority that is not ours is refused by the TLS library: that case leaves no entry.
"""

from __future__ import annotations

import asyncio
import random
import shutil
import sys
import tempfile
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from campaign.trusted import Ours, Scene, Sender, Verdict
from flopwatch_agent import enrollment
from flopwatch_agent.certificates import Files
from flopwatch_collector.trust import denylist, tokens
from flopwatch_collector.trust.denylist import Denied
from flopwatch_proto.errors import PermanentError
from pki import Pki, node_uri

LIFE_SECONDS: Final = 6


async def _expired(scene: Scene, name: str) -> None:
    """A certificate that was not renewed ends while its stream stands; then a newer one comes."""
    await scene.enroll(name, scene.token())
    files = Files.enrolled(scene.home / name)
    held = files.certificate.read_bytes()
    ends = datetime.now(UTC) + timedelta(seconds=LIFE_SECONDS)
    short = Ours(scene.authorities).node("atlas", name, ends=ends)
    _lay(files.certificate, short.certificate + short.key)
    sender = Sender(scene, name, renews=False)
    await scene.fresh(sender)
    await asyncio.sleep((ends - datetime.now(UTC)).total_seconds() + 0.5)
    await scene.told("stream_ended", "has expired")
    sessions = sender.node.stream.counters.sessions
    await asyncio.sleep(0.5)
    assert sender.node.stream.counters.sessions == sessions, "let in with what expired"
    _lay(files.certificate, held)
    await scene.fresh(sender)
    await scene.finish(sender)


def _lay(path: Path, content: bytes) -> None:
    new = path.with_suffix(".new")
    new.write_bytes(content)
    new.rename(path)


async def _rotated(scene: Scene, *, node_first: bool) -> None:
    """An authority is added, signs, and the older one goes, while the honest ones send and renew."""
    scene.authorities.add(scene.now_unix_ms())
    await scene.refresh()
    await _renewed(scene)
    scene.authorities.switch(scene.now_unix_ms(), 0)
    if node_first:
        await _renewed(scene)
    await scene.refresh()
    await _renewed(scene)
    scene.authorities.drop(scene.now_unix_ms(), 0)
    await scene.refresh()
    for sender in scene.honest:
        sender.node.stream.move()
    await _renewed(scene)


async def _renewed(scene: Scene) -> None:
    for sender in scene.honest:
        await enrollment.renew(scene.target, Files.enrolled(sender.data))
    await scene.fresh(*scene.honest)


async def _node_first(scene: Scene, name: str) -> None:
    await _rotated(scene, node_first=True)


async def _listener_first(scene: Scene, name: str) -> None:
    await _rotated(scene, node_first=False)


async def _wrong_name(scene: Scene, name: str) -> None:
    """The certificate of another node."""
    said = await scene.opens(Ours(scene.authorities).node("atlas", f"{name}x"), name)
    _says(said, "the certificate is of")
    await scene.told("stream_refused", "the certificate is of")


async def _two_names(scene: Scene, name: str) -> None:
    uris = [node_uri("atlas", name), node_uri("atlas", f"{name}x")]
    said = await scene.opens(Ours(scene.authorities).node("atlas", name, uris=uris), name)
    _says(said, "2 URI names")
    await scene.told("stream_refused", "2 URI names")


async def _stranger(scene: Scene, name: str) -> None:
    pair = Ours(scene.authorities).node("atlas", name, domain="elsewhere")
    _says(await scene.opens(pair, name), "trust domain 'elsewhere'")
    await scene.told("stream_refused", "trust domain 'elsewhere'")


async def _other_authority(scene: Scene, name: str) -> None:
    _says(await scene.opens(Pki("other").node("atlas", name), name), "connection: ")


async def _denied(scene: Scene, name: str) -> None:
    """Denied while its stream stands; it neither comes back nor renews until it is admitted."""
    sender = await scene.enrolled(name)
    now = scene.now_unix_ms()
    word = Denied(
        cluster="atlas",
        node=name,
        denied_unix_ms=now,
        issued_before_unix_ms=None,
        by="ops",
        why="stolen",
    )
    denylist.deny(scene.control, word)
    await scene.told("stream_ended", "is denied: stolen")
    await scene.told("stream_refused", "is denied: stolen")
    await _refuses(enrollment.renew(scene.target, Files.enrolled(sender.data)), "denied: stolen")
    await scene.told("renewal_refused", "is denied: stolen")
    denylist.admit(scene.control, "atlas", name, "ops", scene.now_unix_ms())
    await scene.refresh()
    await scene.fresh(sender)
    await scene.finish(sender)


async def _replayed(scene: Scene, name: str) -> None:
    """A token of one use comes again, with another key."""
    token = scene.token(uses=1)
    await scene.enroll(name, token)
    shutil.rmtree(scene.home / name)
    await _refuses(scene.enroll(name, token), "used up")
    await scene.told("enrollment_refused", "used up")


async def _token_expired(scene: Scene, name: str) -> None:
    token = scene.token()
    scene.later_ms = 3_720_000
    await _refuses(scene.enroll(name, token), "expired 2 minutes ago")
    scene.later_ms = 0
    await scene.told("enrollment_refused", "expired 2 minutes ago")


async def _token_of_another(scene: Scene, name: str) -> None:
    await _refuses(scene.enroll(name, scene.token("gpu-*")), "is for nodes 'gpu-*'")
    await scene.told("enrollment_refused", "is for nodes 'gpu-*'")


async def _token_revoked(scene: Scene, name: str) -> None:
    token = scene.token()
    tokens.revoke(scene.control, token.split(".")[1], "ops", scene.now_unix_ms())
    await _refuses(scene.enroll(name, token), "was revoked")
    await scene.told("enrollment_refused", "was revoked")


def _says(said: str, why: str) -> None:
    assert why in said, f"said {said!r}, and not {why!r}"


async def _refuses(asked: Awaitable[object], why: str) -> None:
    try:
        await asked
    except PermanentError as exc:
        _says(str(exc), why)
    else:
        raise AssertionError(f"let through, and not refused with {why!r}")


KINDS: Final[dict[str, Callable[[Scene, str], Awaitable[None]]]] = {
    "expired mid-stream": _expired,
    "authority changed, node first": _node_first,
    "authority changed, listener first": _listener_first,
    "wrong name": _wrong_name,
    "two names": _two_names,
    "other trust domain": _stranger,
    "other authority": _other_authority,
    "denied mid-stream": _denied,
    "token replayed": _replayed,
    "token expired": _token_expired,
    "token of another node": _token_of_another,
    "token revoked": _token_revoked,
}


async def run(home: Path, cases: int, seed: int, kinds: tuple[str, ...] = tuple(KINDS)) -> Verdict:
    """Run so many cases, each kind in its turn, and judge."""
    scene, chance = Scene(home), random.Random(seed)
    await scene.open()
    order: list[str] = []
    while len(order) < cases:
        order += chance.sample(kinds, len(kinds))
    for number, kind in enumerate(order[:cases]):
        scene.trust._refusals._told.clear()  # one host is written once a minute; here all are one
        scene.case_unix_ms = scene.now_unix_ms()
        before = [sender.node.stream.counters.rejects.copy() for sender in scene.honest]
        try:
            await KINDS[kind](scene, f"c{number}")
        except (AssertionError, PermanentError, TimeoutError) as exc:
            scene.verdict.problems.append(f"case {number}, {kind}: {exc!r}")
        await scene.fresh(*scene.honest)
        assert before == [sender.node.stream.counters.rejects for sender in scene.honest]
        scene.verdict.cases[kind] = scene.verdict.cases.get(kind, 0) + 1
        sys.stdout.write(f"case {number + 1}: {kind}\n")
        sys.stdout.flush()
    return await scene.close()


def main(cases: int, seed: int) -> int:
    """Run one and say how it went; 0 where nothing is wrong."""
    with tempfile.TemporaryDirectory() as scratch:
        verdict = asyncio.run(run(Path(scratch), cases, seed))
    sys.stdout.write(
        f"seed {seed}: cases {verdict.cases}, {verdict.refusals} refusals in the audit log, {verdict.rows} "
        f"rows, fresh within {verdict.fresh_seconds:.1f} s, {len(verdict.problems)} problems\n"
    )
    sys.stdout.write("".join(f"WRONG {problem}\n" for problem in verdict.problems[:50]))
    return 1 if verdict.problems else 0


if __name__ == "__main__":
    chosen = [int(word) for word in sys.argv[1:]]
    sys.exit(main(*(chosen + [36, 1][len(chosen) :])))
