"""Sessions over real sockets: turns, changes on the way, and messages against the rules."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from demo.client import Client, DemoError
from demo.server import protocol as wire
from tests.unit.demo.fakes import WAIT_SECONDS
from tests.unit.demo.scenes import close_code, is_free, meet, quick, refusal, vanish
from tests.unit.demo.serving import serving


def test_a_session_from_hello_to_stop(tmp_path):
    async def scene(url: str) -> None:
        async with Client(url) as client:
            welcome = await client.enter()
            assert (welcome.height, welcome.width, welcome.encoding) == (40, 64, "rgb8")
            started = await client.start("moss", prompt="a disc", seed=3)
            assert (started.picture, started.prompt, started.seed) == ("moss", "a disc", 3)
            shown = [await client.chunk() for _ in range(4)]
            assert [s.chunk.seq for s in shown] == [s.chunk.chunk for s in shown] == [0, 1, 2, 3]
            assert [len(s.frames) for s in shown] == [5, 6, 6, 6]
            assert (shown[0].frames[0, 0, 0] == [30, 80, 40]).all()
            for s in shown:
                assert 0 < s.chunk.begun_ms < s.chunk.server_ms and s.chunk.cache_bytes == 1000
            await client.send(wire.Stop())
            assert (await client.expect(wire.Stopped)).reason == "stopped by the user"
            await client.send(wire.Save(title="what was played can still be saved"))
            await client.expect(wire.Saved)
            await client.start("dusk")
            again = await client.chunk()
            assert again.chunk.chunk == 0 and again.chunk.seq > 3, "seq counts on, chunk begins anew"

    with serving(player := quick(folder=tmp_path)) as served:
        meet(scene(served.url))
        is_free(served, player)
        text = served.ask("GET", "/metrics")[2].decode()
        assert "demo_performances_total 2.0" in text and 'demo_sockets_closed_total{code="0"} 1.0' in text


def test_a_drag_is_seen_from_the_next_chunk_on():
    async def scene(url: str) -> None:
        async with Client(url) as client:
            await client.enter()
            await client.start("slate")
            await client.chunk()
            await client.control({7: (0.5, 0.5)}, {8: (0.9, 0.9)})
            while (await client.chunk()).chunk.revision < 1:
                pass
            revision = await client.control({7: (0.75, 0.5)}, {8: (0.9, 0.9)})
            while (shown := await client.chunk()).chunk.revision < revision:
                pass
            assert 0 < shown.chunk.heard_ms <= shown.chunk.begun_ms
            np.testing.assert_allclose(shown.tracks[0, :, :2], [[0.75, 0.5], [0.9, 0.9]], atol=1e-6)

    with serving(quick()) as served:
        meet(scene(served.url))


@pytest.mark.slow
def test_pause_within_a_chunk_and_on_without_a_jump():
    async def scene(url: str) -> None:
        async with Client(url) as client:
            await client.enter()
            await client.start("moss")
            last = [await client.chunk() for _ in range(3)][-1].chunk.chunk
            await client.send(wire.Pause())
            seen = []
            while not isinstance(message := await client.next(), wire.Paused):
                seen.append(message.chunk.chunk)
            assert seen in ([], [last + 1]), "one chunk, which was being made, may follow"
            assert message.chunk == last + len(seen) + 1
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(client.next(), 0.3)
            await client.send(wire.Resume())
            assert (await client.expect(wire.Resumed)).chunk == message.chunk
            assert (await client.chunk()).chunk.chunk == message.chunk

    with serving(quick()) as served:
        meet(scene(served.url))


def test_changes_on_the_way(tmp_path):
    async def scene(url: str) -> None:
        async with Client(url) as client:
            await client.enter()
            for early in (wire.Pause(), wire.Reset(), wire.Save(title="")):
                await client.send(early)
                with pytest.raises(DemoError, match="not_started"):
                    await client.next()
            await client.start("moss")
            await client.send(wire.RefreshSink())
            with pytest.raises(DemoError, match="chunks are too few"):
                await client.expect(wire.Changed)
            last = [await client.chunk() for _ in range(3)][-1].chunk
            await client.send(wire.RefreshSink())
            await client.send(wire.NewPrompt(prompt="snow"))
            assert (await client.expect(wire.Changed)).what == "sink"
            assert (await client.expect(wire.Changed)).what == "prompt"
            await client.send(wire.Save(title="mine"))
            saved = await client.expect(wire.Saved)
            await client.send(wire.Reset())
            changed = await client.expect(wire.Changed)
            assert (changed.what, changed.chunk) == ("reset", 0)
            shown = await client.chunk()
            assert shown.chunk.chunk == 0 and shown.chunk.seq > last.seq
            assert (tmp_path / saved.id / "recording.json").exists()
            for unknown in ("nothing", ""):
                with pytest.raises(DemoError, match="picture"):
                    await client.start(unknown)

    with serving(player := quick(folder=tmp_path)) as served:
        meet(scene(served.url))
        assert player.opened[0].calls == ["sink", "prompt snow", "reset"]
        recording = served.json("/api/recordings")[0]
        status, headers, body = served.ask("GET", f"/api/recordings/{recording['id']}/video.mp4")
        assert status == 200 and headers["Content-Type"] == "video/mp4" and body[4:8] == b"ftyp"
        assert served.ask("GET", f"/api/recordings/{recording['id']}/passwd")[0] == 404


def test_a_reset_waits_for_no_acknowledgement():
    async def scene(url: str) -> None:
        async with Client(url, acknowledges=False) as client:
            await client.enter()
            await client.start("moss")
            first = await client.chunk()
            await client.send(wire.Reset())
            await client.expect(wire.Changed)
            second = await asyncio.wait_for(client.chunk(), WAIT_SECONDS)
            assert second.chunk.chunk == 0
            await client.send(wire.Ack(seq=first.chunk.seq, waited_ms=0))  # too late: it says nothing of the second
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(client.next(), 0.2)
            await client.send(wire.Ack(seq=second.chunk.seq, waited_ms=0))
            assert (await asyncio.wait_for(client.chunk(), WAIT_SECONDS)).chunk.chunk == 1

    with serving(quick()) as served:
        meet(scene(served.url))


def test_motion_transfer_and_the_webcam_reach_the_model():
    async def scene(url: str) -> None:
        async with Client(url) as client:
            await client.enter()
            motion = (await client.upload(b"\0\0\0\x18ftypmp42", "video/mp4", "/api/motions"))["id"]
            await client.start("moss")
            revision = await client.control(transfer=motion)
            while (await client.chunk()).chunk.revision < revision:
                pass
            jpeg = wire.encode_frames(np.zeros((1, 30, 50, 3), np.uint8), "jpeg", 90)
            await client.send(wire.Webcam(), jpeg)
            await client.send(wire.Webcam(), [b"no jpeg"])
            assert "webcam" in await refusal(client)
            await client.control(transfer="unknown")
            assert "no motion 'unknown'" in await refusal(client)

    with serving(player := quick()) as served:
        meet(scene(served.url))
        calls = player.opened[0].calls
        assert [c for c in calls if c.startswith("motion")] and "24" in calls[0]


def test_turns_are_taken_in_order_and_places_are_free_at_once():
    async def scene(url: str) -> None:
        clients = [Client(url) for _ in range(4)]
        for client in clients:
            await client.__aenter__()
            await asyncio.sleep(0.05)
        first, second, third, fourth = clients
        await first.enter()
        assert (await second.expect(wire.Queued)).position == 1
        assert (await third.expect(wire.Queued)).position == 2
        assert (await fourth.expect(wire.Queued)).position == 3
        vanish(third)
        assert (await fourth.expect(wire.Queued)).position == 2
        await first.start("moss")
        await first.chunk()
        vanish(first)
        await asyncio.wait_for(second.enter(), WAIT_SECONDS)
        assert (await fourth.expect(wire.Queued)).position == 1
        await second.socket.close()
        await asyncio.wait_for(fourth.enter(), WAIT_SECONDS)
        await fourth.socket.close()

    with serving(player := quick()) as served:
        meet(scene(served.url))
        is_free(served, player)


def test_messages_against_the_rules_change_nothing_until_there_are_too_many():
    async def scene(url: str) -> tuple[int | None, int]:
        async with Client(url) as client:
            await client.enter()
            await client.start("moss")
            old = wire.encode(wire.Pause())
            wrong: list[bytes | str] = [
                old[:2] + b"\x00" + old[3:],
                b"garbage",
                "a text",
                wire.encode(wire.Hello(protocol=wire.VERSION, token="")),
            ]
            wrong += [wire.encode(wire.Ack(seq=10_000, waited_ms=0))]
            for data in wrong:
                await client.socket.send(data)
                await refusal(client)
            many = np.zeros((10_000, 4), "<f4")
            await client.send(
                wire.Controls(revision=1, count=10_000, paths=(), camera=None, transfer=""), [many.tobytes()]
            )
            assert "too_many" in await refusal(client)
            await client.control({1: (float("nan"), 0.5)})
            assert "point 0 is not finite" in await refusal(client)
            shown = await client.chunk()
            assert shown.chunk.revision == 0, "a refused snapshot was heard"
            await client.control({1: (5.0, -7.0)})  # outside, but finite: clipped
            while (shown := await client.chunk()).chunk.revision != 2:
                pass
            np.testing.assert_allclose(shown.tracks[0, 0, :2], [2, -1])
            for _ in range(3):
                await client.socket.send(b"garbage")
            return await close_code(client), len(wrong)

    with serving(player := quick()) as served:
        assert meet(scene(served.url))[0] == wire.RULES
        is_free(served, player)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("first", "code", "word"),
    [
        (wire.encode(wire.Hello(protocol=wire.VERSION, token="wrong")), wire.RULES, "token"),
        (None, wire.RULES, "order"),
    ],
)
def test_who_does_not_introduce_himself_is_shown_out(first, code, word):
    async def scene(url: str) -> None:
        async with connect(url.replace("http", "ws") + "/ws", proxy=None) as socket:
            if first is not None:
                await socket.send(first)
            error = wire.decode(await socket.recv(), wire.FROM_SERVER)[0]
            assert (error.code, error.fatal) == (word, True)
            with pytest.raises(ConnectionClosed) as closed:
                await socket.recv()
            assert closed.value.rcvd.code == code

    with serving(player := quick(), token="right", hello_seconds=WAIT_SECONDS if first else 0.2) as served:
        meet(scene(served.url))
        is_free(served, player)


def test_a_page_may_show_the_token_as_a_cookie():
    async def scene(url: str) -> None:
        address = url.replace("http", "ws") + "/ws"
        async with connect(address, proxy=None, additional_headers={"Cookie": "token=right"}) as socket:
            await socket.send(wire.encode(wire.Hello(protocol=wire.VERSION, token="")))
            assert isinstance(wire.decode(await socket.recv(), wire.FROM_SERVER)[0], wire.Welcome)

    with serving(quick(), token="right") as served:
        meet(scene(served.url))


def test_an_old_page_is_asked_to_load_again():
    async def scene(url: str) -> None:
        async with connect(url.replace("http", "ws") + "/ws", proxy=None) as socket:
            for data in (
                b"MS\x00" + wire.encode(wire.Hello(protocol=wire.VERSION, token=""))[3:],
                wire.encode(wire.Hello(protocol=0, token="")),
            ):
                await socket.send(data)
                error = wire.decode(await socket.recv(), wire.FROM_SERVER)[0]
                assert (error.code, error.fatal) == ("version", False)
            await socket.send(wire.encode(wire.Start(picture="", prompt="", seed=0, smoothing=SMOOTHING, depth="")))
            assert wire.decode(await socket.recv(), wire.FROM_SERVER)[0].code == "order"

    SMOOTHING = wire.Smoothing(smooth_seconds=0, max_speed=0, release="free")
    with serving(quick()) as served:
        meet(scene(served.url))
