"""Several devices for one update: the other ranks of a learner, each a process of its own with a copy of its network.

Every rank computes the gradient of its pieces of each minibatch; all-reduce adds the gradients up, and each takes the
same step. Rank 0 is the learner itself. Rollouts are shared memory that every rank maps; weights, moments and random
state go from rank 0 to the others at the start of each update, so that nothing has to be agreed on between two.

A rank that dies or hangs costs the update under way: the learner takes it back and repeats it alone, while the ranks
are started anew. Ranks that cannot even be made are given up after a few starts. When the learner's process ends, in
whatever way, the kernel kills the others.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import mmap
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields
from datetime import timedelta
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, distributed

from protocol.errors import RoverError
from protocol.node.config import validate_table
from protocol.spec import RobotSpec, TaskSpec
from protocol.transform import InputTransform
from trainerd.learning.inputs import Way
from trainerd.learning.ppo import ALONE, Exchange, ExchangeError, ppo_update
from trainerd.learning.rollout import Rollout
from trainerd.learning.settings import NetworkSettings, PpoSettings

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from trainerd.learning.learner import Learner

READY = b"ready"
STARTS = 3
"""Ranks that ended so often, one start after another, before they could take part, would do so for ever."""
PR_SET_PDEATHSIG = 1
HANG_S = 120.0
"""Longer than any rank's part of a minibatch: one that has not answered by then hangs."""
ENDLESS = timedelta(days=30)
"""The other ranks wait through any pause of the learner; its end, they see at once."""
ALIGNMENT = 64


C10D = cast("Any", distributed)
"""torch.distributed, whose stubs leave out much of what it has."""


class RanksError(RoverError):
    """Ranks cannot be had as they were asked for."""


def check_devices(devices: Sequence[str]) -> None:
    """Raise RanksError for devices that cannot learn together, or that this machine does not have."""
    found = [torch.device(name) for name in devices]
    gpus = [device.index or 0 for device in found if device.type == "cuda"]
    if gpus and (len(gpus) < len(found) or len(set(gpus)) < len(gpus)):
        raise RanksError(f"devices {', '.join(devices)}: name CPUs only, or different GPUs such as cuda:0, cuda:1")
    count = torch.cuda.device_count() if gpus else 0
    if gpus and max(gpus) >= count:
        seen = f"{count}, cuda:0 to cuda:{count - 1}" if count else "none"
        raise RanksError(f"device cuda:{max(gpus)}: torch {torch.__version__} sees these GPUs: {seen}")


@dataclass(frozen=True)
class Plan:
    """What the other ranks are made from, besides what the learner says."""

    devices: tuple[str, ...]
    """One a rank, the learner's own first: ``("cuda:0", "cuda:1")``, or ``("cpu", "cpu")``."""
    encoder: str
    """Name of the encoder plugin."""
    encoder_settings: Mapping[str, Any]
    threads: int = 1
    """Of torch on the CPU, in each rank."""


class GroupExchange:
    """The exchange of one rank over a process group of torch.distributed."""

    def __init__(
        self,
        port: int,
        name: str,
        rank: int,
        world: int,
        *,
        device: torch.device,
        timeout: timedelta,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        """Meet the other ranks at the store on ``port`` of the loopback; blocks until all are there.

        ``check`` runs before each sum and raises ExchangeError where a rank is known to be gone.
        """
        self.rank, self.world = rank, world
        self._check = check
        limit = timedelta(seconds=HANG_S)
        store = C10D.TCPStore("127.0.0.1", port, None, is_master=False, timeout=limit, wait_for_workers=False)
        try:
            self._group = _group(C10D.PrefixStore(name, store), rank, world, device, timeout)
        except RuntimeError as error:
            raise ExchangeError(f"ranks: they did not meet: {str(error).splitlines()[0]}") from error

    def sum_(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by the sum of all ranks' ones; raises ExchangeError where a rank is gone."""
        self._check()
        flat = torch.cat([each.detach().reshape(-1) for each in tensors])
        _wait(self._group.allreduce, flat)
        _scatter(flat, tensors)

    def broadcast_(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by that of rank 0; raises ExchangeError where a rank is gone."""
        flat = torch.cat([each.detach().reshape(-1) for each in tensors])
        _wait(self._group.broadcast, flat)
        if self.rank:
            _scatter(flat, tensors)


class Ranks:
    """The processes of ranks 1 to n - 1, for one learner. One thread only, the learner's.

    ``begin`` gives the exchange for an update; until all ranks are up, and after one was lost, that of a single rank.
    """

    def __init__(self, plan: Plan, *, hang_s: float = HANG_S) -> None:
        """Plan; ``start`` starts the processes. Raises RanksError for a device that cannot be one of several."""
        check_devices(plan.devices)
        self.plan = plan
        self.lost = 0
        """Times that ranks had to be started anew."""
        self.failed = ""
        """Why there are no other ranks any more, for people; empty while there are some."""
        self._starts = 0
        """Starts in a row that ended before all ranks could take part."""
        self._starter: ThreadPoolExecutor | None = None
        self._hang = timedelta(seconds=hang_s)
        self._store: Any = None
        self._peers: list[_Peer] = []
        self._exchange: GroupExchange | None = None
        self._generation = 0
        self._is_under_way = False
        self._shared: dict[int, tuple[Rollout, int, list[Any]]] = {}
        self._learner_facts: dict[str, Any] = {}

    @property
    def pids(self) -> list[int]:
        """The processes of the other ranks."""
        return [peer.process.pid for peer in self._peers]

    @property
    def is_ready(self) -> bool:
        """True once every rank can take part."""
        return len(self._peers) == len(self.plan.devices) - 1 and all(peer.is_ready() for peer in self._peers)

    def start(self, learner: Learner) -> None:
        """Start the processes, which takes them seconds; returns at once."""
        self._learner_facts = {
            "robot": learner.robot.to_map(),
            "task": learner.task.to_map(),
            "transform": learner.transform.to_map(),
            "network": asdict(learner.network_settings),
            "ppo": {**asdict(learner.ppo_settings), "autocast": "none"},  # each update says how to compute
            "encoder": self.plan.encoder,
            "encoder_settings": dict(self.plan.encoder_settings),
            "threads": self.plan.threads,
        }
        if self._store is None:
            self._store = _store()
        if self._starter is None:
            self._starter = ThreadPoolExecutor(1, "ranks")
        self._stop()
        self.failed, self._starts = "", 0
        self._start_anew()

    def wait(self, timeout_s: float) -> None:
        """Wait until every rank can take part; raises RanksError after ``timeout_s``, or where they were given up."""
        end = time.monotonic() + timeout_s
        while not self.is_ready:
            if self.failed:
                raise RanksError(f"ranks: {self.failed}")
            if time.monotonic() > end:
                raise RanksError(f"ranks: not up after {timeout_s:g} s")
            time.sleep(0.02)

    def begin(self, learner: Learner, rollout: Rollout, *, cloning: float, reward_scale: float) -> Exchange:
        """Tell every rank to take part in an update that is about to begin, and return the exchange for it.

        Raises:
            ExchangeError: a rank went away meanwhile; call ``restart``.

        """
        if not self._learner_facts:
            self.start(learner)
        if self._is_under_way or any(peer.is_gone for peer in self._peers):
            self.restart()
        if not self.is_ready:
            return ALONE
        self._is_under_way, self._starts = True, 0
        exchange = self._joined(learner.device)
        key = self._share(rollout)
        scale = learner.inputs.loss_scale
        message = {
            "do": "update",
            "rollout": key,
            "rows": rollout.rows,
            "final_rows": rollout.final_rows,
            "cloning": cloning,
            "reward_scale": reward_scale,
            "lr": learner.optimizer.param_groups[0]["lr"],
            "generator": bytes(learner.generator.get_state().numpy()).hex(),
            "has_moments": _has_moments(learner),
            "way": asdict(learner.inputs.way),
            "loss_scale": scale.to_list() if scale is not None else [],
        }
        for peer in self._peers:
            peer.send(message)
        exchange.broadcast_(_everything(learner))
        return exchange

    def finish(self) -> None:
        """Say that the update was run to its end, so that the ranks are free for the next one."""
        self._is_under_way = False

    def restart(self) -> None:
        """End all other ranks and start new ones, unless that has failed ``STARTS`` times in a row."""
        if self.failed:
            return
        self.lost += 1
        never = [peer for peer in self._peers if peer.is_gone and not peer.is_ready()]
        self._starts += bool(never)
        self._stop()
        if self._starts >= STARTS:
            self._give_up(f"rank {never[0].name} ended {STARTS} times before it could take part: {never[0].end_text}")
        else:
            self._start_anew()

    def close(self) -> None:
        """End the processes and give the shared memory back to the system once nothing uses it."""
        self._stop()
        for _, descriptor, _ in self._shared.values():
            os.close(descriptor)
        self._shared.clear()
        self._store = None
        if self._starter is not None:
            self._starter.shutdown()
            self._starter = None

    def _start_anew(self) -> None:
        self._is_under_way = False
        self._generation += 1
        starter = cast("ThreadPoolExecutor", self._starter)
        try:
            for rank, device in list(enumerate(self.plan.devices))[1:]:
                # A thread that lives as long as the ranks: with the one that starts them, the kernel ends them.
                self._peers.append(starter.submit(_Peer, rank, device, self._learner_facts).result())
        except OSError as error:  # no process could be had
            self._stop()
            self._give_up(f"rank {rank} on {device} cannot be started: {error}")

    def _give_up(self, why: str) -> None:
        self._is_under_way = False
        self.failed = f"{why}; one rank learns alone"

    def _check(self) -> None:
        for peer in self._peers:
            if peer.is_gone:
                raise ExchangeError(f"ranks: rank {peer.name} {peer.end_text}")

    def _stop(self) -> None:
        for peer in self._peers:
            peer.end()
        self._peers = []
        self._exchange = None

    def _joined(self, device: torch.device) -> GroupExchange:
        if self._exchange is None:
            name, world = f"generation-{self._generation}", len(self.plan.devices)
            for peer in self._peers:
                peer.send({"do": "join", "port": self._store.port, "name": name, "world": world})
            self._check()
            self._exchange = GroupExchange(
                self._store.port, name, 0, world, device=device, timeout=self._hang, check=self._check
            )
        return self._exchange

    def _share(self, rollout: Rollout) -> int:
        """Make a rollout's arrays shared memory, once, and let every rank map it; return its key."""
        key = id(rollout)
        if key not in self._shared:
            self._shared[key] = (rollout, *_move(rollout))
        _, descriptor, layout = self._shared[key]
        for peer in self._peers:
            if key not in peer.mapped:
                sizes = {"capacity": rollout.capacity, "finals": rollout.finals}
                peer.send({"do": "map", "rollout": key, "layout": layout, **sizes}, descriptor)
                peer.mapped.add(key)
        return key


class _Peer:
    """Rank 0's end of another rank: its process, and the socket that tells it what to do."""

    def __init__(self, rank: int, device: str, facts: Mapping[str, Any]) -> None:
        """Start the process; where it cannot be told what to make, it is ended, and so found gone like any other."""
        self.name = f"{rank} on {device}"
        self.mapped: set[int] = set()
        """Keys of the rollouts that it knows."""
        self._is_ready = False
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            command = [sys.executable, "-m", "trainerd.learning.ranks"]
            command += [str(theirs.fileno()), str(rank), device, str(os.getpid())]
            environment = {**os.environ, "OMP_NUM_THREADS": str(facts["threads"])}
            # A session of its own: Ctrl-C is for the learner, whose end it sees by itself.
            self.process = subprocess.Popen(
                command, pass_fds=(theirs.fileno(),), env=environment, start_new_session=True, stdin=subprocess.DEVNULL
            )
        try:
            self.send({"do": "make", **facts})
        except ExchangeError:
            self.process.kill()

    @property
    def is_gone(self) -> bool:
        """Whether its process has ended."""
        return self.process.poll() is not None

    @property
    def end_text(self) -> str:
        """How its process ended, for people."""
        code = self.process.returncode
        return f"signal {-code}" if code and code < 0 else f"exit status {code}"

    def is_ready(self) -> bool:
        """Report whether it said that it has made its network."""
        if not self._is_ready and select.select([self._socket], [], [], 0)[0]:
            with contextlib.suppress(ConnectionError):
                self._is_ready = self._socket.recv(len(READY)) == READY
        return self._is_ready

    def send(self, message: Mapping[str, Any], *descriptors: int) -> None:
        """Tell it something; raises ExchangeError where it is gone.

        The message is a file in memory: a robot of many elements needs more than a packet may hold.
        """
        letter = os.memfd_create("message")
        try:
            with os.fdopen(letter, "wb", closefd=False) as file:
                file.write(json.dumps(message).encode())
            socket.send_fds(self._socket, [b"m"], [letter, *descriptors])
        except OSError as error:
            raise ExchangeError(f"ranks: rank {self.name} is gone: {error}") from error
        finally:
            os.close(letter)

    def end(self) -> None:
        """Kill it: it has nothing to save."""
        self._socket.close()
        self.process.kill()
        self.process.wait()


def _store() -> Any:
    """Make the store where ranks meet, on the loopback: left to itself, torch listens on every interface."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
        return C10D.TCPStore(
            "127.0.0.1", port, None, is_master=True, wait_for_workers=False, master_listen_fd=listener.detach()
        )


def _group(store: Any, rank: int, world: int, device: torch.device, timeout: timedelta) -> Any:
    if device.type == "cpu":
        options = C10D.ProcessGroupGloo._Options()  # noqa: SLF001 - there is no other way to name the interface
        options._devices = [C10D.ProcessGroupGloo.create_device(hostname="127.0.0.1")]  # noqa: SLF001
        options._timeout = timeout  # noqa: SLF001
        return C10D.ProcessGroupGloo(store, rank, world, options)
    torch.cuda.set_device(device)
    # A rank that is gone must be an error here, not the end of this process.
    os.environ.setdefault("TORCH_NCCL_BLOCKING_WAIT", "1")
    os.environ.setdefault("TORCH_NCCL_ASYNC_ERROR_HANDLING", "0")
    options = C10D.ProcessGroupNCCL.Options()
    options._timeout = timeout  # noqa: SLF001 - as above
    return C10D.ProcessGroupNCCL(store, rank, world, options)


def _wait(operation: Any, flat: Tensor) -> None:
    try:
        operation([flat]).wait()
    except RuntimeError as error:
        raise ExchangeError(f"ranks: one is gone: {str(error).splitlines()[0]}") from error


def _scatter(flat: Tensor, tensors: Sequence[Tensor]) -> None:
    place = 0
    with torch.no_grad():
        for each in tensors:
            each.copy_(flat[place : place + each.numel()].view(each.shape))
            place += each.numel()


def _has_moments(learner: Learner) -> bool:
    return all(bool(learner.optimizer.state.get(p)) for p in learner.network.parameters())


def _everything(learner: Learner) -> list[Tensor]:
    """Return weights, buffers and moments, in one order."""
    state = learner.optimizer.state
    moments = [state[p][key] for p in learner.network.parameters() for key in sorted(state.get(p, {}))]
    return [*learner.network.state_dict().values(), *moments]


def _arrays(rollout: Rollout) -> dict[str, npt.NDArray[Any]]:
    named = {each.name: getattr(rollout, each.name) for each in fields(rollout)}
    arrays = {name: value for name, value in named.items() if isinstance(value, np.ndarray)}
    return {**arrays, **{f"images/{key}": store for key, store in rollout.images.items()}}


def _attach(rollout: Rollout, name: str, array: npt.NDArray[Any]) -> None:
    _, is_image, key = name.partition("images/")
    if is_image:
        rollout.images[key] = array
    else:
        setattr(rollout, name, array)


def _move(rollout: Rollout) -> tuple[int, list[Any]]:
    """Move a rollout's arrays into shared memory; return its descriptor and [name, dtype, shape, offset] of each.

    The memory has no name in /dev/shm: it goes with the last process that uses it, and a container's limit on that
    folder does not apply.
    """
    layout, size = [], 0
    for name, array in _arrays(rollout).items():
        layout.append([name, array.dtype.str, list(array.shape), size])
        size += -(-array.nbytes // ALIGNMENT) * ALIGNMENT
    descriptor = os.memfd_create("rollout")
    os.ftruncate(descriptor, max(size, 1))
    for name, array in _mapped(descriptor, layout).items():
        array[...] = _arrays(rollout)[name]
        _attach(rollout, name, array)
    return descriptor, layout


def _mapped(descriptor: int, layout: Sequence[Any]) -> dict[str, npt.NDArray[Any]]:
    memory = mmap.mmap(descriptor, 0)
    return {
        name: np.ndarray(tuple(shape), np.dtype(dtype), buffer=memory, offset=offset)
        for name, dtype, shape, offset in layout
    }


class _Rank:
    """What runs in the process of another rank."""

    def __init__(self, rank: int, device: str, facts: Mapping[str, Any]) -> None:
        """Make the same network, optimiser and inputs as the learner's."""
        from plugins.manager import PluginManager  # noqa: PLC0415 - rank 0 has one already
        from trainerd.learning.learner import Learner  # noqa: PLC0415 - it imports this module

        torch.set_num_threads(facts["threads"])
        encoder = PluginManager(("encoders",)).encoder(facts["encoder"])
        settings = validate_table(encoder.settings, facts["encoder_settings"], f"plugins.{encoder.name}")
        self.rank = rank
        self.learner = Learner(
            RobotSpec.from_map(facts["robot"]),
            TaskSpec.from_map(facts["task"]),
            InputTransform.from_map(facts["transform"]),
            lambda shape: encoder.build(shape, settings),
            network=validate_table(NetworkSettings, facts["network"], "network"),
            ppo=validate_table(PpoSettings, facts["ppo"], "ppo"),
            seed=0,
            budget_decisions=1,
            device=device,
        )
        self.learner.warm_up()
        self._rollouts: dict[int, Rollout] = {}
        self._exchange: GroupExchange | None = None

    def join(self, port: int, name: str, world: int) -> None:
        """Become one of a group."""
        device = self.learner.device
        self._exchange = GroupExchange(port, name, self.rank, world, device=device, timeout=ENDLESS)

    def map(self, message: Mapping[str, Any], descriptor: int) -> None:
        """Map a rollout that rank 0 shares."""
        rollout = Rollout.allocate(self.learner.robot, self.learner.task, self.learner.transform, 0)
        rollout.capacity, rollout.finals = message["capacity"], message["finals"]
        for name, array in _mapped(descriptor, message["layout"]).items():
            _attach(rollout, name, array)
        self._rollouts[message["rollout"]] = rollout

    def update(self, message: Mapping[str, Any]) -> None:
        """Take part in an update; what comes of it is rank 0's business."""
        learner, exchange = self.learner, cast("GroupExchange", self._exchange)
        way = Way(**message["way"])
        if learner.inputs.way != way:
            learner.use(way)
        if learner.inputs.loss_scale is not None:
            learner.inputs.loss_scale.set(message["loss_scale"])
        learner.optimizer.state.clear()
        if message["has_moments"]:
            for p in learner.network.parameters():
                learner.optimizer.state[p] = {
                    "step": torch.zeros((), device=p.device),
                    "exp_avg": torch.zeros_like(p),
                    "exp_avg_sq": torch.zeros_like(p),
                }
        exchange.broadcast_(_everything(learner))
        for group in learner.optimizer.param_groups:
            group["lr"] = message["lr"]
        learner.generator.set_state(torch.frombuffer(bytearray.fromhex(message["generator"]), dtype=torch.uint8))
        rollout = self._rollouts[message["rollout"]]
        rollout.rows, rollout.final_rows = message["rows"], message["final_rows"]
        steps = ppo_update(
            learner.network,
            learner.optimizer,
            rollout,
            learner.inputs,
            learner.ppo_settings,
            cloning=message["cloning"],
            generator=learner.generator,
            distribution=learner.distribution,
            exchange=exchange,
            reward_scale=message["reward_scale"],
        )
        for _ in steps:
            pass


def main(arguments: list[str]) -> int:
    """Be a rank: ``ranks SOCKET RANK DEVICE PARENT``, started by ``Ranks``; ends with the process that started it."""
    descriptor, number, device, parent = arguments
    _end_with(int(parent))
    channel = socket.socket(fileno=int(descriptor))
    rank: _Rank | None = None
    while True:
        content, descriptors, _, _ = socket.recv_fds(channel, 1, 2)
        if not content:
            return 0
        with os.fdopen(descriptors[0], "rb") as file:
            file.seek(0)
            message = json.load(file)
        what = message.pop("do")
        if what == "make":
            rank = _Rank(int(number), device, message)
            channel.send(READY)
            continue
        assert rank is not None  # noqa: S101 - rank 0 says make first
        try:
            if what == "join":
                rank.join(**message)
            elif what == "map":
                rank.map(message, descriptors[1])
                os.close(descriptors[1])
            else:
                rank.update(message)
        except ExchangeError:
            return 1  # rank 0 is gone, or another rank is and rank 0 is about to start all anew


def _end_with(parent: int) -> None:
    """Let the kernel kill this process when its parent ends, whatever it waits in by then, such as a GPU."""
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != parent:  # it ended before the line above
        raise SystemExit(1)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
