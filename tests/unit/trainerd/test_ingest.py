import random
import socket
from dataclasses import replace

import numpy as np
import pytest

from protocol import messages
from protocol.framing import pack
from protocol.step import EpisodeEnd
from tests.unit.trainerd.conftest import FAST, Bench
from tests.unit.trainerd.rover import BARE
from trainerd.ingest import Link, LinkError
from trainerd.mailbox import Mailbox

pytestmark = pytest.mark.component


def test_records_arrive_once_in_order_owned_and_writable(bench):
    rover = bench.rover()
    rover.greet()
    rover.drive(60)
    rover.wait_acked()
    assert bench.sink.seqs() == list(range(62))
    seen = bench.sink.steps[0].observation
    assert all(array.flags.owndata and array.flags.writeable for array in (*seen.images.values(), seen.state))


def test_a_robot_without_cameras_is_served_too(bench):
    rover = bench.rover(robot=BARE)
    rover.greet()
    rover.drive(10)
    rover.wait_acked()
    assert len(bench.sink.steps) == 10


def test_a_record_that_is_sent_twice_counts_once(bench):
    rover = bench.rover()
    rover.greet()
    rover.drive(20)
    rover.resend()
    rover.resend()
    rover.wait_until(lambda: bench.fleet.tally.duplicates == 40)
    rover.wait_acked()
    assert bench.sink.seqs() == list(range(20))


def test_a_lost_ack_resends_each_step_once(bench):
    rover = bench.rover()
    rover.greet()
    rover.drive(20)
    kept = dict(rover.kept)
    rover.wait_acked()
    rover.kept = kept
    rover.reconnect()
    assert rover.greet().received == [[0, 19]]
    assert rover.kept == {}
    rover.drive(5)
    rover.wait_acked()
    assert bench.sink.seqs() == list(range(25))
    assert bench.fleet.tally.lost == 0


def test_records_out_of_order_are_handed_on_in_order(bench):
    rover = bench.rover()
    rover.greet()
    frames = [rover.encode(record) for record in rover.records(20)]
    random.Random(0).shuffle(frames)
    for each in frames:
        rover.socket.send_multipart(each)
    rover.wait_until(lambda: len(bench.sink.taken) == 20)
    assert bench.sink.seqs() == list(range(20))


def test_a_gap_is_asked_for_and_mended_without_loss(bench):
    rover = bench.rover()
    rover.greet()
    records = rover.records(10)
    for record in records[:3] + records[6:]:
        rover.socket.send_multipart(rover.encode(record))
    assert rover.wait_for(messages.Resend).ranges == [[3, 5]]
    for record in records[3:6]:
        rover.socket.send_multipart(rover.encode(record))
    rover.wait_for(messages.Ack, lambda ack: ack.ranges == [[0, 9]])
    assert bench.fleet.tally.lost == 0


def test_what_the_rover_no_longer_has_is_counted_as_lost_and_the_rest_goes_on(bench):
    rover = bench.rover()
    rover.greet()
    records = rover.records(10)
    for record in records[:3] + records[6:]:
        rover.socket.send_multipart(rover.encode(record))
    rover.send(messages.Ping(0, oldest_unacked=6))
    ack = rover.wait_for(messages.Ack, lambda ack: ack.ranges and ack.ranges[-1][1] == 9)
    assert ack.ranges == [[0, 2], [6, 9]]
    assert bench.fleet.tally.lost == 3


def test_a_busy_learner_takes_credit_away_and_what_had_no_room_is_asked_for(tmp_path):
    bench = Bench(tmp_path, replace(FAST, credit=16))
    try:
        bench.sink.is_busy = True
        rover = bench.rover()
        assert rover.greet().credit == 16
        rover.drive(40)
        rover.wait_until(lambda: bench.fleet.tally.refused == 9)
        rover.wait_until(lambda: len(rover.kept) == 9)  # what had room is safe, whenever it will be learned from
        assert (rover.credit, bench.sink.taken) == (0, [])
        bench.sink.is_busy = False
        asked = rover.wait_for(messages.Resend)
        assert asked.ranges == [[32, 40]]
        rover.resend()
        rover.wait_acked()
        rover.wait_until(lambda: rover.credit == 16)
        assert bench.sink.seqs() == list(range(41))
        assert bench.fleet.tally.lost == 0
    finally:
        bench.close()


def test_nothing_is_acknowledged_or_learned_from_before_it_is_safe(bench):
    rover = bench.rover()
    rover.greet()
    bench.shelf.is_slow = True
    rover.drive(20)
    rover.wait_until(lambda: len(bench.shelf.kept.get(("rover-1", "boot-1"), [])) == 20)
    rover.send(messages.Ping(0))
    rover.wait_for(messages.Pong)
    rover.listen(300)
    assert (len(rover.kept), bench.sink.taken) == (20, [])
    bench.ask(lambda: bench.link.safe([("rover-1", "boot-1", seq) for seq in range(3, 20)]))
    rover.wait_until(lambda: sorted(rover.kept) == [0, 1, 2])
    assert bench.sink.taken == [], "the first is not safe yet"
    bench.ask(lambda: bench.link.safe([("rover-1", "boot-1", seq) for seq in range(3)]))
    rover.wait_until(lambda: bench.sink.seqs() == list(range(20)))


def test_a_full_disk_stops_the_rover_and_loses_nothing(bench):
    rover = bench.rover()
    rover.greet()
    bench.shelf.is_open = False
    rover.drive(20)
    rover.wait_until(lambda: bench.fleet.tally.refused >= 20)
    rover.wait_until(lambda: rover.credit == 0)
    assert (len(rover.kept), bench.sink.taken) == (20, [])
    bench.shelf.is_open = True
    rover.wait_for(messages.Resend)
    rover.resend()
    rover.wait_acked()
    assert bench.sink.seqs() == list(range(20))


def test_what_an_earlier_boot_left_is_taken_in_beside_the_present_one(bench):
    old = bench.rover()
    old.greet()
    old.drive(5)
    old.wait_acked()
    left = [old.encode(record) for record in old.records(10)]
    new = bench.rover(boot="boot-2")
    new.seq = 0
    named = [{"boot_id": "boot-1", "first": 5, "next": 15}]
    while not any(isinstance(m, messages.Welcome) for m in new.heard):
        new.hello(backlog=named)
        new.listen(50)
    assert new.wait_for(messages.Welcome).backlog == {"boot-1": [[0, 4]]}
    for frames in left[5:]:
        new.socket.send_multipart(frames)
    new.drive(5)
    new.wait_acked()
    for frames in left[:3]:
        new.socket.send_multipart(frames)
    new.send(messages.Gone("boot-1", [[8, 9]], "damaged on disk"))
    new.wait_until(lambda: len(bench.sink.taken) == 18)
    boots = [(record.boot_id, record.seq) for record in bench.sink.taken]
    assert [seq for boot, seq in boots if boot == "boot-1"] == [0, 1, 2, 3, 4, 5, 6, 7, 10, 11, 12, 13, 14]
    assert [seq for boot, seq in boots if boot == "boot-2"] == [0, 1, 2, 3, 4]
    assert bench.fleet.tally.lost == 2
    new.hello()
    new.wait_until(lambda: bench.sink.closed == [("rover-1", "boot-1")])
    assert bench.shelf.closed == [("rover-1", "boot-1")]


def test_the_live_lane_comes_through_before_the_backfill(bench):
    rover = bench.rover()
    records = rover.records(20)
    while not any(isinstance(m, messages.Welcome) for m in rover.heard):
        rover.hello(oldest_unacked=0, next_seq=20, live_seq=12)
        rover.listen(50)
    for record in records[12:]:
        rover.socket.send_multipart(rover.encode(record))
    rover.wait_until(lambda: bench.sink.seqs() == list(range(12, 20)))
    for record in records[:12]:
        rover.socket.send_multipart(rover.encode(record))
    rover.wait_until(lambda: bench.sink.seqs() == [*range(12, 20), *range(12)])
    assert bench.fleet.tally.lost == 0


def test_two_rovers_are_kept_apart(bench):
    a, b = bench.rover("a"), bench.rover("b")
    for rover in (a, b):
        rover.greet()
    for _ in range(5):
        a.drive(7)
        b.drive(3)
    a.wait_acked()
    b.wait_acked()
    assert bench.sink.seqs("a") == list(range(36))
    assert bench.sink.seqs("b") == list(range(15))


def test_a_trainer_that_forgot_a_boot_goes_on_where_the_rover_says(bench):
    rover = bench.rover()
    rover.seq = 500
    rover.drive(5)
    rover.wait_for(messages.Refuse, lambda refuse: refuse.code == "hello_first" and refuse.retry)
    assert rover.greet().received == [[0, 499]]
    rover.resend()
    rover.wait_acked()
    assert bench.sink.seqs() == list(range(500, 505))
    assert bench.fleet.tally.lost == 0


def test_a_restarted_rover_closes_its_old_boot(bench):
    old = bench.rover()
    old.greet()
    old.drive(5)
    old.wait_acked()
    old.send(messages.Goodbye("restart"))
    new = bench.rover(boot="boot-2")
    while not any(isinstance(m, messages.Welcome) for m in new.heard):  # it may be heard before the goodbye
        new.hello()
        new.listen(50)
    new.wait_until(lambda: bench.sink.closed == [("rover-1", "boot-1")])
    new.drive(5)
    new.wait_acked()


def test_a_rover_whose_connection_is_gone_is_taken_over_at_once(bench):
    old = bench.rover()
    old.greet()
    old.socket.close()
    new = bench.rover(boot="boot-2")
    new.hello()
    while not any(isinstance(m, messages.Welcome) for m in new.heard):
        new.hello()
        new.listen(50)


def test_alien_bytes_are_counted_and_the_connection_goes_on(bench):
    rover = bench.rover()
    rover.greet()
    good = rover.encode(rover.records(1)[0])
    generator = random.Random(1)
    pickled = b"\x80\x04\x95cos\nsystem\n(S'true'\ntR."
    aliens = [[b""], [pickled], [pickled, pickled], [b"\xc1"], [pack({"kind": "nonsense"})], [b"x"] * 100]
    aliens += [[pack({"kind": "hello", "rover_id": 5})], [pack({"kind": "ack"})], [pack({"kind": "step"})]]
    for _ in range(300):
        frames = [bytearray(frame) for frame in good]
        victim = frames[generator.randrange(len(frames))]
        if generator.random() < 0.3:
            del victim[generator.randrange(len(victim)) :]
        else:
            for _ in range(generator.randrange(1, 20)):
                victim[generator.randrange(len(victim))] = generator.randrange(256)
        aliens.append([bytes(frame) for frame in frames])
    for alien in aliens:
        rover.socket.send_multipart(alien)
    before = rover.seq
    rover.drive(10)
    rover.wait_acked()
    assert [seq for seq in bench.sink.seqs() if before <= seq < before + 10] == list(range(before, before + 10))
    assert sum(bench.link.malformed.values()) > 50
    assert bench.fleet.rovers["rover-1"].connected


def test_a_malformed_step_is_counted_acknowledged_and_dropped(bench):
    rover = bench.rover()
    rover.greet()
    records = rover.records(3)
    frames = [rover.encode(record) for record in records]
    frames[0][1] = b"not a jpeg"
    for each in frames:
        rover.socket.send_multipart(each)
    rover.wait_for(messages.Ack, lambda ack: ack.ranges == [[0, 2]])
    assert bench.sink.seqs() == [1, 2]
    assert sum(bench.link.malformed.values()) == 1


def test_damaged_images_cost_their_steps_only(bench):
    rover = bench.rover()
    rover.greet()
    generator = random.Random(2)
    for record in rover.records(300):
        frames = [bytearray(frame) for frame in rover.encode(record)]
        for victim in frames[1:]:
            del victim[generator.randrange(len(victim) + 1) :]
            for _ in range(generator.randrange(20)):
                if victim:
                    victim[generator.randrange(len(victim))] = generator.randrange(256)
        rover.socket.send_multipart([bytes(frame) for frame in frames])
    before = rover.seq
    rover.drive(10)
    rover.wait_acked()
    assert bench.sink.seqs()[-10:] == list(range(before, before + 10))
    assert len(bench.sink.taken) + sum(bench.link.malformed.values()) == rover.seq


def test_a_seq_from_nowhere_does_not_spoil_the_lane(bench):
    rover = bench.rover()
    rover.greet()
    (step,) = rover.records(1)
    step.seq = 1 << 60
    rover.socket.send_multipart(rover.encode(step))
    rover.seq = 0
    rover.drive(10)
    rover.wait_acked()
    assert (bench.link.malformed["seq"], bench.fleet.tally.lost) == (1, 0)


def test_a_step_of_somebody_else_is_malformed(bench):
    rover = bench.rover()
    rover.greet()
    thief = bench.rover("other")
    rover.socket.send_multipart(thief.encode(thief.records(1)[0]))
    rover.wait_until(lambda: bench.link.malformed["identity"] == 1)
    assert bench.sink.taken == []


def test_a_stranger_is_told_to_say_hello(bench):
    rover = bench.rover()
    rover.ping()
    assert rover.wait_for(messages.Refuse).code == "hello_first"
    assert rover.greet().version == 1


def test_both_sides_ping_and_silence_ends_the_connection(bench):
    rover = bench.rover()
    rover.greet()
    rover.wait_for(messages.Ping)
    rover.send(messages.Ping(7))
    rover.wait_for(messages.Pong, lambda pong: pong.sent_ns == 7)
    silent = bench.rover("silent")
    silent.greet()
    rover.wait_until(lambda: not bench.fleet.rovers["silent"].connected)
    assert bench.fleet.rovers["rover-1"].connected


def test_a_rover_that_sends_no_steps_is_named(bench):
    rover = bench.rover()
    rover.greet()
    bench.mailbox.post(lambda: bench.fleet.set_mode("train", 0.0))
    wanted = "rover-1: no step in"
    rover.wait_until(lambda: any(wanted in cause for cause in bench.ask(lambda: bench.fleet.causes(10.0**9))))


def test_an_episode_that_ends_by_order_reaches_its_evaluation(bench):
    from trainerd.evaluate import evaluation_order

    rover = bench.rover()
    rover.greet()
    order = evaluation_order("reactive", "", 2, 0)
    bench.ask(lambda: bench.fleet.evaluations.ask("rover-1", "reactive", order, 10.0**9))
    rover.wait_until(lambda: rover.order == order)
    rover.drive(60, purpose="evaluation")
    rover.wait_acked()
    assert bench.ask(lambda: bench.fleet.evaluations.get(order.order_id).stage) == "finished"
    rover.wait_until(lambda: rover.order.mode == "idle")
    assert sum(isinstance(record, EpisodeEnd) for record in bench.sink.taken) == 2


def test_records_that_wait_for_a_resting_learner_do_not_stand_in_the_way_of_an_evaluation(bench):
    from trainerd.evaluate import evaluation_order

    bench.sink.is_resting = True
    rover = bench.rover()
    rover.greet()
    rover.drive(30)
    rover.wait_until(lambda: bench.ask(lambda: bench.fleet.rovers["rover-1"].boot.waiting) == 31)
    assert bench.sink.passed == []
    order = evaluation_order("reactive", "", 1, 0)
    bench.ask(lambda: bench.fleet.evaluations.ask("rover-1", "reactive", order, 10.0**9))
    rover.wait_until(lambda: rover.order == order)
    rover.drive(30, purpose="evaluation")
    rover.wait_acked()
    assert (len(bench.sink.passed), len(bench.sink.taken)) == (31, 31)
    assert bench.ask(lambda: bench.fleet.evaluations.get(order.order_id).stage) == "finished"


def test_a_port_in_use_is_one_line_that_says_what_to_do(bench, tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        settings = replace(bench.settings, port=port)
        link = Link(settings, Mailbox(), bench.fleet, bench.sink, bench.registry, bench.shelf)
        with pytest.raises(LinkError) as caught:
            link.start()
    assert str(caught.value) == f"port {port}: in use; stop the other trainerd or choose another --port"


def test_images_of_two_decisions_stay_what_they_were(bench):
    rover = bench.rover()
    rover.greet()
    kept = []

    def consume(record, _lane):
        if getattr(record, "tick_in_decision", 0) == 0:
            seen = record.final if isinstance(record, EpisodeEnd) else record.observation
            kept.append((seen.images, {key: image.copy() for key, image in seen.images.items()}))
            for images, copies in kept[-2:]:
                assert all(np.array_equal(images[key], copies[key]) for key in copies)
        return True

    bench.sink.consume = consume
    rover.drive(60)
    rover.wait_acked()
    assert len(kept) == 22
